"""Heads that objectives put on a backbone."""

from collections.abc import Sequence

from torch import nn

from unlabeled.errors import UserError


def simclr_projector(in_features: int, layers: int, out_features: int) -> nn.Sequential:
    """Builds the non-linear projector of SimCLR (google-research/simclr, model_util.projection_head).

    Every layer is Linear without bias and BatchNorm; hidden layers keep the input width and end in ReLU; the last
    BatchNorm has a scale and no bias. Linear weights are drawn from N(0, 0.01).

    Args:
        in_features: width of the backbone's features.
        layers: at least 1; 2 in v1, 3 in v2.
        out_features: width of the embeddings.
    """
    if layers < 1:
        raise UserError(f"objective.projection_layers={layers}: a projector has at least one layer")
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [_linear(in_features, in_features), nn.BatchNorm1d(in_features), nn.ReLU(inplace=True)]
    last = nn.BatchNorm1d(out_features)
    last.register_parameter("bias", None)  # a scale only: batch_norm accepts None as bias
    return nn.Sequential(*modules, _linear(in_features, out_features), last)


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


def byol_mlp(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Builds projector or predictor of BYOL (google-deepmind/deepmind-research, byol/utils/networks.py ``MLP``).

    Linear with bias, BatchNorm, ReLU, Linear without bias; weights are drawn as Haiku does: normal with a variance of 1
    / inputs, truncated at two deviations.
    """
    first, last = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, out_features, bias=False)
    nn.init.zeros_(first.bias)
    for linear in (first, last):
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
