"""Heads that objectives put on a backbone."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.objectives.parts.arguments import check_count
from unlabeled.objectives.parts.precision import full_precision

LastNorm = Literal["none", "affine", "parameter_free"]


def projector_widths(features: int, hidden_dim: int, layers: int, projection_dim: int) -> list[int]:
    """Returns the widths of a projector for :func:`mlp`. Raises UserError if it has no layer."""
    if layers < 1:
        raise UserError(f"objective.projection_layers={layers}: a projector has at least one layer")
    return [features, *[hidden_dim] * (layers - 1), projection_dim]


def mlp(
    widths: Sequence[int],
    norm: bool = True,
    last_norm: LastNorm = "none",
    bias_hidden: bool = False,
    bias_last: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Builds linear layers with an activation between them: the heads of most methods; torch's initial weights.

    Args:
        widths: of the input, of each hidden layer and of the output; two at least.
        norm: whether hidden layers have BatchNorm before the activation.
        last_norm: BatchNorm after the last layer, with scale and bias (``affine``) or without (``parameter_free``).
        bias_hidden, bias_last: of the hidden layers and of the last one; a BatchNorm behind a bias takes it away.
        activation: makes one of its modules.

    Raises:
        UserError: fewer than two widths, one that is no count, or a last norm of another name.
    """
    if len(widths) < 2:
        raise UserError(f"mlp: widths={list(widths)}: give at least those of input and output")
    check_count("mlp", **{f"widths[{place}]": width for place, width in enumerate(widths)})
    if last_norm not in ("none", "affine", "parameter_free"):
        raise UserError(f"mlp: last_norm={last_norm} is not one of none, affine, parameter_free")
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        modules += [nn.Linear(before, after, bias=bias_hidden), *([nn.BatchNorm1d(after)] if norm else [])]
        modules.append(activation())
    modules.append(nn.Linear(widths[-2], widths[-1], bias=bias_last))
    if last_norm != "none":
        modules.append(nn.BatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*modules)


class DINOHead(nn.Module):
    """MLP with GELU, unit length, then cosines with prototypes (facebookresearch/dino, vision_transformer.py).

    Tensors have the official names: ``mlp.0`` …, ``last_layer.weight_g`` and ``last_layer.weight_v``.

    Args:
        in_dim: width of the features.
        out_dim: number of prototypes, K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width in which lengths are 1.
        layers: of the MLP, 1 to any.
        batch_norm: whether hidden layers have BatchNorm, as officially for ResNets.
        norm_last_layer: whether the prototypes keep length 1; if not, their lengths are trained.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        check_count("DINOHead", layers=layers)
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        made = mlp(widths, batch_norm, bias_hidden=True, bias_last=True, activation=nn.GELU)
        self.mlp: nn.Module = made if layers > 1 else made[0]
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits [B, out_dim] of features [B, in_dim]; float32 whatever autocast says."""
        logits: Tensor = self.last_layer(_unit_rows(self.mlp(features)))
        return logits


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are g · v / ‖v‖ (Salimans and Kingma 2016, arXiv:1602.07868).

    Its tensors have the names of ``torch.nn.utils.weight_norm``, which newer versions of torch call otherwise.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, rows: Tensor) -> Tensor:
        return _weight_norm(rows, self.weight_g, self.weight_v)


@full_precision
def _unit_rows(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


@full_precision
def _weight_norm(rows: Tensor, g: Tensor, v: Tensor) -> Tensor:
    return F.linear(rows, g * v / v.norm(dim=1, keepdim=True))


def simclr_projector(
    in_features: int, layers: int, out_features: int, hidden_features: int | None = None
) -> nn.Sequential:
    """Builds the non-linear projector of SimCLR (google-research/simclr, model_util.projection_head).

    Every layer is Linear without bias and BatchNorm; hidden layers keep the input width and end in ReLU; the last
    BatchNorm has a scale and no bias. Linear weights are drawn from N(0, 0.01).

    Args:
        in_features: width of the backbone's features.
        layers: at least 1; 2 in v1, 3 in v2.
        out_features: width of the embeddings.
        hidden_features: width of hidden layers; None: the input width, as officially.
    """
    _check_layers(layers)
    widths = [in_features, *[hidden_features or in_features] * (layers - 1)]
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [_linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    last = nn.BatchNorm1d(out_features)
    last.register_parameter("bias", None)  # a scale only: batch_norm accepts None as bias
    return nn.Sequential(*modules, _linear(widths[-1], out_features), last)


def plain_projector(in_features: int, layers: int, out_features: int, hidden_features: int) -> nn.Sequential:
    """Builds linear layers with bias and ReLU between them, as solo-learn for SimCLR (solo/methods/simclr.py)."""
    _check_layers(layers)
    widths = [in_features, *[hidden_features] * (layers - 1), out_features]
    return mlp(widths, norm=False, bias_hidden=True, bias_last=True)


def _check_layers(layers: int) -> None:
    if layers < 1:
        raise UserError(f"objective.projection_layers={layers}: a projector has at least one layer")


def swav_projector(
    in_features: int, hidden_features: Sequence[int], out_features: int, batch_norm: bool
) -> nn.Sequential:
    """Builds the projector of SwAV (facebookresearch/swav, resnet50.py ``projection_head``) and of SEER.

    Hidden layers are Linear, BatchNorm and ReLU; the last layer is a single Linear; every Linear has a bias and torch's
    initial weights. With one hidden layer its tensors have the official names ``0``, ``1`` and ``3``.

    Args:
        in_features: width of the backbone's features.
        hidden_features: width of each hidden layer; none makes the projector linear.
        out_features: width of the embeddings.
        batch_norm: whether hidden layers have BatchNorm; SEER's heads have none (facebookresearch/vissl).
    """
    modules: list[nn.Module] = []
    for width in hidden_features:
        modules += [nn.Linear(in_features, width), *([nn.BatchNorm1d(width)] if batch_norm else []), nn.ReLU()]
        in_features = width
    return nn.Sequential(*modules, nn.Linear(in_features, out_features))


def byol_mlp(in_features: int, hidden_features: int, out_features: int, last_bias: bool = False) -> nn.Sequential:
    """Builds projector or predictor of BYOL (google-deepmind/deepmind-research, byol/utils/networks.py ``MLP``).

    Linear with bias, BatchNorm, ReLU, Linear without bias unless ``last_bias``; weights are drawn as Haiku does: normal
    with a variance of 1 / inputs, truncated at two deviations.
    """
    first, last = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, out_features, last_bias)
    for linear in (first, last):
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        std = linear.in_features**-0.5
        nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    return nn.Sequential(first, nn.BatchNorm1d(hidden_features), nn.ReLU(inplace=True), last)


def paws_predictor(width: int) -> nn.Sequential:
    """Builds the prediction head of PAWS (facebookresearch/suncet, paws_train.py): BatchNorm first, hidden width / 4.

    Args:
        width: of input and output, a multiple of 4.
    """
    if width % 4:
        raise UserError(
            f"objective.projection_dim={width}: must be a multiple of 4 with objective.prediction_head=true"
        )
    hidden = width // 4
    return nn.Sequential(
        nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
    )


def _linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(linear.weight, std=0.01)
    return linear
