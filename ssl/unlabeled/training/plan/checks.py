"""Checks the schedule of a run for probable mistakes.

Settings that cannot work are refused earlier, with one line and exit code 2: a queue longer than the data, fewer
classes than classes per batch, a batch larger than the data, images of a size that the backbone does not take. Probable
mistakes in a method or in views are checked by their own ``plan_warnings``.
"""

from unlabeled.objective import Check
from unlabeled.optimizers import OptimizerConfig

# Peak for 256 images of a run that starts from weights: a tenth of conf/optimizer/ (our choice)
CONTINUED = {"SGD": 0.003, "LARS": 0.03, "AdamW": 1.5e-5, "Muon": 5e-5}
WARMUP, FINAL = 1 / 5, 1 / 10  # largest share of the run; largest share of the peak


def check_schedule(
    optimizer_config: OptimizerConfig, epochs: float, images_per_step: int, schedule: dict[str, list[float]]
) -> list[Check]:
    """Checks warm-up, last learning rate and, if there is a queue, whether it will be full.

    Args:
        optimizer_config: of the optimizer.
        epochs: of the whole run.
        images_per_step: over all processes and batches.
        schedule: of the plan; its last values belong to the last step.
    """
    looks = [
        _warmup(optimizer_config.warmup_epochs, epochs),
        *_last_rate(optimizer_config, epochs, images_per_step, schedule["learning_rate"][-1]),
    ]
    return looks + ([_queue(schedule["queue_fill"][-1])] if "queue_fill" in schedule else [])


def check_continued_rate(optimizer_config: OptimizerConfig, images_per_step: int, origin: str) -> list[Check]:
    """Checks the peak of a run that starts from weights, which is lower than for random ones, as in fine-tuning.

    Args:
        optimizer_config: of the optimizer; of one that is not in ``CONTINUED`` nothing is known.
        images_per_step: over all processes and batches.
        origin: what the run starts from.
    """
    name = getattr(optimizer_config.optimizer, "func", optimizer_config.optimizer).__name__
    if name not in CONTINUED:
        return []
    advised, peak = CONTINUED[name] * images_per_step / 256, optimizer_config.peak_lr(images_per_step)
    lower = optimizer_config.lr * advised / peak if peak else 0.0
    return [
        Check(
            "a lower learning rate from weights that exist",
            peak <= advised * (1 + 1e-9),
            f"a peak of {peak:.3g} with {name}, from weights={origin}",
            f"what they have learnt may be lost first: give optimizer.lr={lower:.2g}, a peak of {advised:.3g}, or less",
        )
    ]


def _warmup(given: float, epochs: float) -> Check:
    return Check(
        "a warm-up of at most a fifth of the run",
        given <= WARMUP * epochs,
        f"optimizer.warmup_epochs={given:g} of {epochs:.4g} epochs",
        f"much of the run is below the peak: give optimizer.warmup_epochs={epochs / 10:.2g}, or more epochs",
    )


def _last_rate(optimizer_config: OptimizerConfig, epochs: float, images_per_step: int, last: float) -> list[Check]:
    """Passes near the end that ``optimizer.final_lr`` asks for too, as of SCAN's constant rate.

    A schedule that means to end high is left out: its network is an average of weights. So is one that only warms up,
    of which the check of the warm-up says what to give.
    """
    peak = optimizer_config.peak_lr(images_per_step)
    if optimizer_config.cosine == "seven_sixteenths" or optimizer_config.warmup_epochs >= epochs:
        return []
    return [
        Check(
            "a last learning rate of at most a tenth of the peak",
            last <= max(FINAL * peak, optimizer_config.final_lr) * 1.001,
            f"{last:.3g} after a peak of {peak:.3g}",
            "weights still jump at the end: give optimizer.milestones within the run, or null for a cosine, or more"
            " steps",
        )
    ]


def _queue(last: float) -> Check:
    return Check(
        "a queue that is full before the end",
        last >= 1,
        f"{last:.0%} full at the last step",
        "give a shorter queue or an earlier start of it, or more steps",
    )
