"""A linear classifier that is exported with its backbone: logits whose softmax are the calibrated probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unlabeled.objective import Backbone


@dataclass(frozen=True)
class LinearClassifier:
    """Maps features [B, D] to logits [B, C]."""

    weight: Tensor  # float32 [C, D]
    bias: Tensor  # float32 [C]
    classes: Sequence[str]  # C names
    protocol: str  # by which it was fitted

    @classmethod
    def folded(
        cls, head: Tensor, mean: Tensor, scale: Tensor, temperature: float, classes: Sequence[str], protocol: str
    ) -> "LinearClassifier":
        """Makes one matrix of a head [C, D + 1] of features that are standardised first, and of its temperature.

        W·(x − mean)/scale + b, all of it over the temperature: computed in float64, kept in float32.
        """
        own = head[:, :-1].double() / scale.double()
        bias = head[:, -1].double() - own @ mean.double()
        return cls((own / temperature).float(), (bias / temperature).float(), list(classes), protocol)

    @property
    def layer(self) -> nn.Linear:
        """Returns the layer."""
        made = nn.Linear(self.weight.shape[1], len(self.weight))
        made.load_state_dict({"weight": self.weight, "bias": self.bias})
        return made

    def behind(self, backbone: Backbone) -> nn.Module:
        """Returns images → logits, in eval mode."""
        return nn.Sequential(backbone, self.layer).eval()

    def state(self, name: str) -> dict[str, Tensor]:
        """Returns its tensors as those of a layer of this name."""
        return {f"{name}.weight": self.weight, f"{name}.bias": self.bias}

    def labels(self) -> dict[str, Any]:
        """Returns the names of the classes as ``config.json`` holds them, for Hugging Face and for people."""
        return {
            "id2label": {str(number): name for number, name in enumerate(self.classes)},
            "label2id": {name: number for number, name in enumerate(self.classes)},
        }


def joined(backbone: Backbone, classifier: LinearClassifier | None) -> nn.Module:
    """Returns images → features, or with a classifier images → logits."""
    return backbone if classifier is None else classifier.behind(backbone)


def outputs(backbone: Backbone, classifier: LinearClassifier | None) -> int:
    """Returns how many numbers come out for an image."""
    return backbone.num_features if classifier is None else len(classifier.bias)
