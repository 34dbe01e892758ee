"""Several classifiers as one: networks of further runs, or one network with its dropout at work; a mean of all.

Deep ensembles: Lakshminarayanan et al. 2017, arXiv:1612.01474. Dropout as members: Gal and Ghahramani 2016,
arXiv:1506.02142; drop path (stochastic depth) is drawn in the same way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.heads.predicted import Predicted
from unlabeled.evaluation.uncertainty.members import log_mean_probabilities, mutual_information
from unlabeled.objective import Backbone

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Sampled(Backbone):
    """A network in eval mode but for its dropout and drop path, which draw anew for each batch, from a seed.

    Args:
        network: with its weights; BatchNorm keeps its statistics.
        seed: of all draws; each member of an ensemble has one of its own.
        dropout: probability that a feature is dropped before the classifier, as it was in training.

    Raises:
        UserError: nothing in the network is random.
    """

    def __init__(self, network: nn.Module, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.network, self.seed, self.dropout, self.batches = network, seed, dropout, 0
        if isinstance(network, Backbone):
            self.num_features, self.kinds, self.channels = network.num_features, network.kinds, network.channels
        self._drawing = [module for module in network.modules() if _rate(module) > 0]
        if not self._drawing and not dropout:
            raise UserError(
                "samples: nothing in this network is random: give members=[RUN,…] of other runs, or a network that was"
                " fine-tuned with recipe.dropout or recipe.drop_path, or trained with backbone.drop_path"
            )

    def forward(self, images: Tensor) -> Tensor:
        with self._at_work(images.device):
            made: Tensor = self.network(images)
            return F.dropout(made, self.dropout)

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        assert isinstance(self.network, Backbone)
        with self._at_work(images.device):
            made = self.network.features(images, kinds)
            return {kind: F.dropout(values, self.dropout) for kind, values in made.items()}

    @contextmanager
    def _at_work(self, device: torch.device) -> Iterator[None]:
        """Lets what is random draw, and leaves the modes and the random state as they were."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.seed, self.batches))
            self.batches += 1
            for module in self._drawing:
                module.training = True
            try:
                yield
            finally:
                for module in self._drawing:
                    module.training = False


def _rate(module: nn.Module) -> float:
    """Returns with which probability a module leaves something out while it is trained."""
    if isinstance(module, (*DROPOUTS, StochasticDepth)):
        return float(module.p)
    rate = getattr(module, "drop_prob", None)  # DropPath, ours and timm's
    return rate if isinstance(rate, float) else 0.0


def pooled(members: Sequence[Iterator[Predicted]]) -> Iterator[Predicted]:
    """Yields the mean prediction of several classifiers of the same images, with how far they disagree.

    Args:
        members: what each predicts, in parts of equal lengths; their classes may have another order.

    Raises:
        UserError: members do not know the same classes.
    """
    for parts in zip(*members, strict=True):
        yield _pool(parts)


def _pool(parts: Sequence[Predicted]) -> Predicted:
    first = parts[0]
    log_p = torch.stack([_in_order(part, first.classes) for part in parts]).log()
    mean = log_mean_probabilities(log_p)
    numbers = torch.where(first.numbers >= 0, mean.argmax(1), first.numbers)
    found = (first.names, first.classes, first.labels, numbers, mean.exp(), first.reasons)
    return Predicted(*found, mutual_information=mutual_information(log_p))


def _in_order(part: Predicted, classes: Sequence[str]) -> Tensor:
    """Returns probabilities float64 [N, C] with the columns of ``classes``."""
    if sorted(part.classes) != sorted(classes):
        raise UserError(f"members: one of them knows {_some(part.classes)}, the first {_some(classes)}")
    return part.probabilities[:, [part.classes.index(name) for name in classes]]


def _some(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"
