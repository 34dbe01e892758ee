"""A small network that learns what handcrafted maps have in common, and so averages out their random errors.

A much shorter form of DeepUSPS (Nguyen et al. 2019, arXiv:1909.13055): one network instead of one per map and a fusion,
one round of training, no conditional random field, cross entropy instead of an F-measure.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlabeled.core.seeding import derive_seed

WIDTH = 32  # channels; our choice
DILATIONS = (1, 2, 4, 8, 4, 2, 1)  # of the 3 × 3 convolutions: receptive field of 45 pixels; our choice
LEARNING_RATE = 3e-3  # of AdamW, with a cosine to 0; our choice
BATCH = 50  # images per step; our choice


class SaliencyNetwork(nn.Module):
    """Maps float [B, 3, h, w] in [0, 1] to logits [B, h, w], from colours and the position in the image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, dilation in enumerate(DILATIONS):
            channels = WIDTH if number else 3 + 2
            layers.append(nn.Conv2d(channels, WIDTH, 3, padding=dilation, dilation=dilation, bias=False))
            layers += [nn.BatchNorm2d(WIDTH), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(WIDTH, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        lines = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
        place = torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(len(images), -1, -1, -1)
        logits: Tensor = self.layers(torch.cat([2 * images - 1, place], 1))
        return logits[:, 0]

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Returns the saliency [B, h, w] in [0, 1]; the network must be in eval mode."""
        logits: Tensor = self(images)
        return logits.sigmoid()


def train_network(images: Tensor, target: Callable[[Tensor], Tensor], epochs: int, seed: int) -> SaliencyNetwork:
    """Trains a network to predict the maps ``target``; returns it in eval mode.

    Args:
        images: float [N, 3, h, w] in [0, 1], on the device to train on.
        target: images → maps [B, h, w] in [0, 1].
        epochs: passes over the images.
        seed: of initial weights, order and mirroring; the global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 0))
        network = SaliencyNetwork().to(images.device)
    maps = torch.cat([target(part) for part in torch.split(images, 256)])
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(images) // BATCH))
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            mirrored = torch.rand((), generator=generator) < 0.5
            some, wanted = (x[rows.to(x.device)].flip(-1) if mirrored else x[rows.to(x.device)] for x in (images, maps))
            loss = F.binary_cross_entropy_with_logits(network(some), wanted)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()
