"""Defines metric bounds that several methods share."""

from unlabeled.objective import MetricBound

# For methods that compare the embeddings of two views. Healthy experiment=*_cifar10_cpu: 0.4 to 0.6 after 300 steps.
VIEWS_ALIKE = MetricBound(
    "views-alike",
    "positive_similarity",
    -1.0,
    0.99,
    "both views of an image always get the same embedding: they are not augmented, or every image gets that one",
    "look at the views with preview=8; check the stop-gradient",
    lasting=True,
)
