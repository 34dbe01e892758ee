"""What may be a mistake in the schedule of any run. What cannot work at all is refused before, by one line and code 2:

a queue longer than the data, fewer classes than classes per batch, a batch larger than the data, images of a size that
the backbone does not take. What may be wrong with a method or with views is theirs to know: ``doubts``.
"""

from unlabeled.objective import Check
from unlabeled.pretraining import Pretraining

WARMUP, FINAL = 1 / 5, 1 / 10  # of the run; of the peak


def look(module: Pretraining, schedule: dict[str, list[float]]) -> list[Check]:
    """The looks at warm-up, last learning rate and, where there is a queue, whether it will be full."""
    looks = [_warmup(module), _last_rate(module, schedule["learning_rate"][-1])]
    if "queue_fill" in schedule:
        looks.append(_queue(schedule["queue_fill"][-1]))
    return looks


def _warmup(module: Pretraining) -> Check:
    given, epochs = module.recipe.warmup_epochs, module.total_steps / module.steps_per_epoch
    return Check(
        "a warm-up of at most a fifth of the run",
        given <= WARMUP * epochs,
        f"optimizer.warmup_epochs={given:g} of {epochs:.4g} epochs",
        f"much of the run is below the peak: give optimizer.warmup_epochs={epochs / 10:.2g}, or more epochs",
    )


def _last_rate(module: Pretraining, last: float) -> Check:
    peak = module.recipe.peak_lr(module.images_per_step)
    return Check(
        "a last learning rate of at most a tenth of the peak",
        last <= FINAL * peak * (1 + 1e-9),
        f"{last:.3g} after a peak of {peak:.3g}",
        "weights still jump at the end: give optimizer.milestones within the run, or null for a cosine, or more steps",
    )


def _queue(last: float) -> Check:
    return Check(
        "a queue that is full before the end",
        last >= 1,
        f"{last:.0%} full at the last step",
        "give a shorter queue or an earlier start of it, or more steps",
    )
