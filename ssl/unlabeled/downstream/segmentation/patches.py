"""Segmentation without training: neighbours of patches, and the foreground by the first principal component."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.downstream.segmentation.crops import shorter_side
from unlabeled.downstream.segmentation.label_maps import IGNORED, LabelledImages

MapOf = Callable[[Tensor], Tensor]  # images [B, 3, h, w], normalised → features [B, D, h', w'] on the device


def patch_labels(labels: Tensor, height: int, width: int, classes: int) -> Tensor:
    """Returns for each patch of a grid the share of its pixels in each class, float32 [height · width, classes].

    ``labels`` int64 [h, w]; pixels that are IGNORED count for no class.
    """
    one_hot = F.one_hot(labels.clamp(min=0), classes).float() * (labels != IGNORED)[..., None]
    return F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1), (height, width)).flatten(1).T


class PatchNeighbours:
    """Weighted k-NN of patches: labels of a patch are those of the nearest patches of training images.

    As the dense k-NN of Balažević et al. 2023 (Hummingbird, arXiv 2306.01667): cosine similarities of the ``k`` nearest
    in a bank of patches are divided by ``temperature`` and their softmax weighs their labels.

    Args:
        bank: float32 [N, D].
        labels: float32 [N, classes], see :func:`patch_labels`.
        k: neighbours.
        temperature: of the softmax.
    """

    def __init__(self, bank: Tensor, labels: Tensor, k: int = 30, temperature: float = 0.02) -> None:
        self.bank, self.labels = F.normalize(bank, dim=1), labels
        self.k, self.temperature = min(k, len(bank)), temperature

    def __call__(self, dense: Tensor) -> Tensor:
        """Returns scores of the classes [classes, h, w] for a map of features [D, h, w]."""
        queries = F.normalize(dense.flatten(1).T, dim=1)
        similarity, rows = (queries @ self.bank.T).topk(self.k, dim=1)
        weights = (similarity / self.temperature).softmax(dim=1)
        scores = torch.einsum("qk,qkc->cq", weights, self.labels[rows])
        return scores.reshape(-1, *dense.shape[1:])


def neighbours_of(
    map_of: MapOf,
    images: LabelledImages,
    normalise: Callable[[Tensor], Tensor],
    size: int,
    classes: int,
    k: int,
    most: int,
    seed: int,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """Returns the function from images [1, 3, size, size] to log scores of the classes, by the patches of images.

    The bank has patches of the centre crop of each image, at most ``most`` of all, drawn by ``seed``.
    """
    bank, known = _bank(map_of, images, normalise, size, classes, most, seed, device)
    search = PatchNeighbours(bank.to(device), known.to(device), k)

    def logits(images: Tensor) -> Tensor:
        scores = torch.stack([search(each) for each in map_of(images)])
        return F.interpolate(scores.clamp(min=1e-6).log(), images.shape[2:], mode="bilinear")

    return logits


def _bank(
    map_of: MapOf,
    images: LabelledImages,
    normalise: Callable[[Tensor], Tensor],
    size: int,
    classes: int,
    most: int,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Returns features float32 [N, D] and shares of classes [N, classes] of drawn patches; no others are kept."""
    bank = known = drawn = torch.empty(0)
    for row in range(len(images)):
        image, truth = images.pair(row)
        crop, truth = _centre(normalise(image), truth, size)
        dense = map_of(crop[None].to(device))[0].cpu()
        own = patch_labels(truth, dense.shape[1], dense.shape[2], classes)
        if row == 0:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(len(images) * len(own), generator=generator)[:most]
            bank, known = dense.new_empty(len(drawn), len(dense)), own.new_empty(len(drawn), classes)
        places = (drawn // len(own) == row).nonzero()[:, 0]
        patches = drawn[places] % len(own)
        bank[places], known[places] = dense.flatten(1).T[patches], own[patches]
    return bank, known


def _centre(image: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resizes the shorter side to ``size`` and cuts out the centre, of both."""
    image = shorter_side(image, size)
    labels = F.interpolate(labels[None, None].float(), image.shape[1:], mode="nearest")[0, 0].long()
    top, left = ((side - size) // 2 for side in image.shape[1:])
    return image[:, top : top + size, left : left + size], labels[top : top + size, left : left + size]


def foreground(maps: Tensor) -> Tensor:
    """Returns a score [B, h, w] of being in the foreground for maps of features [B, D, h, w] of several images.

    The projection on the first principal component of all patches, as DINOv2's figures; its sign is such that the
    patches at the border of the images are background on average.
    """
    patches = maps.permute(0, 2, 3, 1).flatten(0, 2)
    centred = patches - patches.mean(dim=0)
    scatter = centred.double().T @ centred.double()
    component = torch.linalg.eigh(scatter).eigenvectors[:, -1].to(maps.dtype)  # eigenvalues ascend
    score = (centred @ component).reshape(len(maps), *maps.shape[2:])
    inner = torch.ones(score.shape[1:], dtype=torch.bool)
    inner[[0, -1], :] = inner[:, [0, -1]] = False
    border = score[:, ~inner].mean()
    return torch.where(border > score.mean(), -score, score)
