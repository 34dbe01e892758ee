"""Says of each metric in which group it is shown, what it means, and which values are healthy."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from unlabeled.health.dashboard.documents import finite_or_none

GROUPS = ("training", "probes", "health", "plan", "system")


class Meaning(NamedTuple):
    """Of a metric, or of all whose name begins so where ``name`` ends in a slash. The bounds are those of the monitor's
    rules, and a test holds them together; None: no bound.
    """

    name: str
    group: str
    sentence: str
    low: float | None = None
    high: float | None = None


MEANINGS = (
    Meaning("train/loss", "training", "What the method minimises. It can be compared within one method only."),
    Meaning("train/learning_rate", "training", "Step size of the optimizer, after warm-up and schedule."),
    Meaning(
        "train/skipped_steps",
        "training",
        "Steps left out so far, as a number was not finite.",
        None,
        0,
    ),
    Meaning("train/positive_similarity", "training", "Mean cosine between two views of one image. 1: they are equal."),
    Meaning("train/neighbour_similarity", "training", "Mean cosine between an image and its neighbour in the queue."),
    Meaning("train/instance_top1", "training", "Share of the images whose other view is found among all of the batch."),
    Meaning("train/contrast", "training", "The contrastive term of the loss."),
    Meaning("train/divergence", "training", "How much the similarities of two views to all others differ."),
    Meaning("train/momentum", "training", "How much of the teacher is kept in a step. 1: it does not move."),
    Meaning("train/effective_prototypes", "training", "Prototypes in use. Near 1: all images get the same."),
    Meaning("train/effective_codes", "training", "Codes in use. Near 1: all images get the same."),
    Meaning("train/effective_classes", "training", "How many classes the predictions use."),
    Meaning("train/effective_patch_prototypes", "training", "How many prototypes the patches use."),
    Meaning("train/teacher_entropy", "training", "How undecided the teacher is. 0: each target is a single prototype."),
    Meaning("train/patch_teacher_entropy", "training", "How undecided the teacher is about patches."),
    Meaning("train/class_loss", "training", "The loss of whole images, without that of patches."),
    Meaning("train/patch_loss", "training", "The loss of masked patches."),
    Meaning("train/koleo_loss", "training", "Small where the features of a batch are spread evenly."),
    Meaning("train/queue_in_use", "training", "1 as soon as the queue takes part in the loss."),
    Meaning("train/cross_entropy", "training", "The part of the loss that compares predictions with targets."),
    Meaning("train/me_max", "training", "The part of the loss that keeps all classes in use."),
    Meaning("train/classes_per_target", "training", "Classes that a target is spread over. 1: it is decided."),
    Meaning("train/diagonal_correlation", "training", "Correlation of two views in one dimension; 1 is the aim."),
    Meaning("train/off_diagonal_correlation", "training", "Correlation between different dimensions; 0 is the aim."),
    Meaning("train/invariance", "training", "Distance between the views of one image."),
    Meaning("train/variance", "training", "Grows as dimensions stop to vary between images."),
    Meaning("train/covariance", "training", "Grows as dimensions repeat one another."),
    Meaning("train/sigreg", "training", "How far the embeddings are from a normal distribution."),
    Meaning("train/embedding_std", "training", "Spread of the embeddings over images. 0: all are equal."),
    Meaning("train/projection_std", "training", "Spread of the projections over images, times √D; 1 is an even one."),
    Meaning("train/target_std", "training", "Spread of the targets over images. 0: all are equal."),
    Meaning("train/train_top1", "training", "Share of the training batch that is classified correctly."),
    Meaning("train/labelled_top1", "training", "Share of the labelled images that are classified correctly."),
    Meaning("train/confident", "training", "Share of the unlabelled images that are sure enough to be trained on."),
    Meaning("train/certain", "training", "Share of the images that are sure enough to be trained on."),
    Meaning("train/confidence", "training", "Mean probability of the likeliest cluster."),
    Meaning("train/cluster_entropy", "training", "How evenly clusters are used. 1: evenly; 0: all images are in one."),
    Meaning("train/neighbours_agree", "training", "Share of the neighbours that are in the cluster of their image."),
    Meaning("train/views_agree", "training", "Share of the images whose strong view stays in their cluster."),
    Meaning("train/held_out_loss", "training", "Loss of the best head on images that are not trained on."),
    Meaning("train/teacher_alike", "training", "How alike the teacher's features of different images are."),
    Meaning("train/similarity_correlation", "training", "Agreement of student and teacher on which images are alike."),
    Meaning("train/", "training", "A value that the method reports of itself."),
    Meaning("probe/knn_top1", "probes", "k-NN accuracy on held-out training images, per cent."),
    Meaning("probe/knn_mean_per_class_top1", "probes", "The same accuracy as a mean over classes, per cent."),
    Meaning("probe/", "probes", "Accuracy of a probe during the run, per cent."),
    Meaning("score/", "probes", "Final top-1 on the test images, per cent."),
    Meaning("health/image_difference", "health", "How much the images of a batch differ, as a share of white.", 0.008),
    Meaning("health/pixel_variation", "health", "How much is on an image, as a share of white.", 0.008),
    Meaning("health/neighbours", "health", "Share of the images that follow as in the source.", None, 0.5),
    Meaning("health/target_gradient", "health", "1 if a gradient reaches the targets, which it must not.", None, 0),
    Meaning("health/radial_gradient", "health", "Dependence of the loss on the length of embeddings.", None, 0.02),
    Meaning("health/embedding_std", "health", "Spread of the embeddings, times √D. Near 0: all are equal.", 0.1),
    Meaning("health/feature_std", "health", "Spread of the features, times √D. Near 0: all are equal.", 0.05),
    Meaning("health/features_finite", "health", "1 if all features of the probe set are finite numbers.", 1),
    Meaning("health/feature_rankme_centred", "health", "Dimensions that the features use (RankMe, centred)."),
    Meaning("health/feature_rankme", "health", "Dimensions that the features use (RankMe)."),
    Meaning("health/feature_effective_rank", "health", "Dimensions that the features use (effective rank)."),
    Meaning("health/embedding_rankme_centred", "health", "Dimensions that embeddings use; should not fall to a fifth."),
    Meaning("health/embedding_rankme", "health", "Dimensions that the embeddings use (RankMe)."),
    Meaning("health/embedding_effective_rank", "health", "Dimensions that the embeddings use (effective rank)."),
    Meaning("health/uniformity", "health", "How evenly embeddings cover the sphere; lower is more even."),
    Meaning("health/alignment", "health", "Distance between two views of an image; lower is nearer."),
    Meaning("health/teacher_cosine", "health", "Cosine between the features of teacher and student."),
    Meaning("health/teacher_distance", "health", "Distance of the teacher's weights from the student's, as a share."),
    Meaning("health/teacher_length", "health", "Norm of the teacher's weights; it changes while the teacher moves."),
    Meaning("health/probe_images", "health", "Images of the fixed set on which features are measured."),
    Meaning(
        "health/update_ratio/backbone", "health", "Change of the backbone's weights in a step, as a share.", None, 0.03
    ),
    Meaning("health/update_ratio/", "health", "Change of the weights in a step, as a share.", None, 0.1),
    Meaning("health/gradient_norm/", "health", "Norm of the gradient of this part; 0 means that it does not learn."),
    Meaning("health/planned/queue_age", "plan", "Steps since the oldest key of the queue was made."),
    Meaning("health/planned/", "plan", "A value that the schedule of the method sets."),
    Meaning("health/data_wait", "system", "Share of the time in which the run waits for data.", None, 0.3),
    Meaning("health/", "health", "A measurement of the health monitor."),
    Meaning("system/cpu", "system", "Share of this machine's cores that are busy, with all programs on it."),
    Meaning("system/process_cores", "system", "Cores that the training process keeps busy, without its workers."),
    Meaning("system/memory_gib", "system", "Memory of the training process, GiB."),
    Meaning("system/machine_memory", "system", "Share of this machine's memory that is in use.", None, 0.95),
    Meaning("system/gpu", "system", "Share of the time in which the GPU computes."),
    Meaning("system/gpu_memory_gib", "system", "GPU memory that the run has reserved, GiB."),
    Meaning("system/gpu_memory", "system", "The same as a share of the GPU's memory."),
    Meaning("speed/", "system", "Speed of the training."),
    Meaning("system/", "system", "A measurement of the machine."),
    Meaning("", "training", "A value that was logged by a program of the user."),
)
_EXACT = {each.name: each for each in MEANINGS if each.name and not each.name.endswith("/")}
_PREFIXES = [each for each in MEANINGS if each.name.endswith("/") or not each.name]


def meaning_of(metric: str) -> Meaning:
    """Returns the meaning of a metric by its name, else by the longest beginning of it that is known."""
    known = [each for each in _PREFIXES if metric.startswith(each.name)]
    return _EXACT.get(metric) or max(known, key=lambda each: len(each.name))


def describe(metrics: Iterable[str], facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns group, sentence and bounds of each metric.

    Args:
        metrics: their names.
        facts: of ``health.json``, any value may be missing or of another type: the method's own bounds, and the number
            of features, of which a healthy network uses 4 %.
    """
    found = {}
    for metric in metrics:
        meaning = meaning_of(metric)
        low, high = _bounds(metric, facts) or (meaning.low, meaning.high)
        sentence = f"{meaning.sentence} {_healthy(low, high)}".strip()
        found[metric] = {"group": meaning.group, "sentence": sentence, "low": low, "high": high}
    return found


def _healthy(low: float | None, high: float | None) -> str:
    least, most = ("" if bound is None else f"{bound:g}".replace("-", "−") for bound in (low, high))
    if least and most:
        return f"Healthy: {least} to {most}."
    return f"Healthy: at least {least}." if least else f"Healthy: at most {most}." if most else ""


def _bounds(metric: str, facts: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    width = finite_or_none(facts.get("features"))
    if metric == "health/feature_rankme_centred" and width:
        return 0.04 * width, None
    signs = facts.get("signs")
    known = [sign for sign in signs if isinstance(sign, dict)] if isinstance(signs, list) else []
    own = [sign for sign in known if f"train/{sign.get('metric')}" == metric]
    if not own:
        return None
    return finite_or_none(own[0].get("at_least")), finite_or_none(own[0].get("at_most"))
