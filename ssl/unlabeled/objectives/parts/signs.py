"""Defines metric bounds that several methods share, and the metrics that only they need."""

import math

import torch
from torch import Tensor

from unlabeled import distributed
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

# For methods that predict a teacher's tokens. These are normalised over their values: the metric is 1 if images have
# nothing in common, and 0 if they have all.
TARGETS_ALIKE = MetricBound(
    "targets-alike",
    "target_std",
    0.02,
    math.inf,
    "the teacher gives the same tokens for all images: the loss falls because there is nothing to predict",
    "check the stop-gradient and objective.momentum, and lower optimizer.lr",
    lasting=True,
)

# For methods that give images clusters
ALL_IN_ONE = MetricBound(
    "clusters-not-used",
    "cluster_entropy",
    0.3,  # 1: all clusters have as many images; 0: one has them all
    1.01,
    "nearly all images are in one cluster, or in few",
    "a larger objective.entropy_weight or batch_size; a look at optimizer.lr and at weights, from which the run starts",
    lasting=True,
)


@torch.no_grad()
def spread_over_images(tokens: Tensor) -> Tensor:
    """Returns the deviation of tokens [B, L, D] over the images of all processes, each position by itself.

    The root of the mean over positions and values of the biased variance, float32 [].
    """
    values = tokens.float()
    mean, square = distributed.mean(values.mean(0)), distributed.mean(values.square().mean(0))
    return (square - mean.square()).clamp(min=0).mean().sqrt()
