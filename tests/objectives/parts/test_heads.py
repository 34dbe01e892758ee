"""Projectors, counted by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unlabeled.errors import UserError
from unlabeled.objectives.parts.heads import DINOHead, LastNorm, mlp, simclr_projector, swav_projector


@pytest.mark.parametrize(("layers", "hidden"), [(1, 0), (2, 1), (3, 2)])
def test_the_number_of_parameters_and_modules_is_that_counted_by_hand(layers: int, hidden: int) -> None:
    projector = simclr_projector(2048, layers, 128)
    # hidden: a square matrix, scale and bias of its BatchNorm; last: a matrix and a scale
    expected = hidden * (2048 * 2048 + 2 * 2048) + 2048 * 128 + 128
    assert sum(parameter.numel() for parameter in projector.parameters()) == expected
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * hidden + [nn.Linear, nn.BatchNorm1d]
    assert [type(module) for module in projector] == kinds


def test_no_linear_layer_has_a_bias_and_the_last_norm_has_a_scale_alone() -> None:
    projector = simclr_projector(64, 3, 16)
    assert not [name for name, _ in projector.named_parameters() if name in ("0.bias", "3.bias", "6.bias")]
    *hidden, last = [module for module in projector if isinstance(module, nn.BatchNorm1d)]
    assert all(norm.bias is not None for norm in hidden)
    assert last.weight.shape == (16,)
    assert "bias" not in dict(last.named_parameters())


def test_linear_weights_are_drawn_with_a_deviation_of_a_hundredth() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = simclr_projector(512, 2, 128)
    for module in projector:
        if isinstance(module, nn.Linear):
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(0.01, abs=4 * 0.01 / (2 * count) ** 0.5)
            assert abs(module.weight.mean().item()) < 4 * 0.01 / count**0.5


def test_the_projection_of_a_batch_has_mean_zero_and_variance_one_per_column() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = simclr_projector(16, 2, 8).double()(torch.randn(64, 16, dtype=torch.float64)).detach()
    assert z.shape == (64, 8)
    torch.testing.assert_close(z.mean(0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float((z.var(0, unbiased=False) - 1).abs().max()) < 0.5  # BatchNorm's epsilon counts beside tiny outputs


def test_a_projector_without_layers_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        simclr_projector(16, 0, 8)


def test_swavs_projector_has_the_official_names_and_number_of_parameters() -> None:
    projector = swav_projector(2048, [2048], 128, batch_norm=True)
    assert list(projector.state_dict()) == [
        *("0.weight", "0.bias"),
        *("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
        *("3.weight", "3.bias"),
    ]
    expected = 2048 * 2048 + 2048 + 2 * 2048 + 2048 * 128 + 128
    assert sum(parameter.numel() for parameter in projector.parameters()) == expected


def test_seers_projector_has_two_hidden_layers_and_no_norm() -> None:
    with torch.device("meta"):
        projector = swav_projector(7392, [8192, 8192], 256, batch_norm=False)
    assert [type(module) for module in projector] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    expected = 7392 * 8192 + 8192 + 8192 * 8192 + 8192 + 8192 * 256 + 256
    assert sum(parameter.numel() for parameter in projector.parameters()) == expected


@pytest.mark.parametrize(("last_norm", "kinds"), [("none", 0), ("affine", 2), ("parameter_free", 0)])
def test_a_general_head_has_the_layers_biases_and_norms_that_it_is_asked_for(last_norm: LastNorm, kinds: int) -> None:
    head = mlp([7, 5, 3], last_norm=last_norm, bias_last=True)
    last = [] if last_norm == "none" else [nn.BatchNorm1d]
    assert [type(module) for module in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, *last]
    assert sum(parameter.numel() for parameter in head.parameters()) == 7 * 5 + 2 * 5 + 5 * 3 + 3 + kinds * 3
    plain = mlp([7, 5, 5, 3], norm=False, bias_hidden=True, activation=nn.GELU)
    assert [type(module) for module in plain] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert sum(parameter.numel() for parameter in plain.parameters()) == (7 + 1) * 5 + (5 + 1) * 5 + 5 * 3


@pytest.mark.parametrize(
    ("widths", "norm", "message"),
    [([4], "none", r"widths=\[4\]"), ([4, 0], "none", r"widths\[1\]=0"), ([4, 2], "batch", "last_norm=batch")],
)
def test_a_general_head_that_cannot_be_built_is_refused_in_one_line(widths: list[int], norm: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^mlp: {message}"):
        mlp(widths, last_norm=norm)  # type: ignore[arg-type]


OFFICIAL_DINO = {
    False: ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight", "mlp.4.bias"],
    True: [
        *("mlp.0.weight", "mlp.0.bias", "mlp.1.weight", "mlp.1.bias"),
        *("mlp.3.weight", "mlp.3.bias", "mlp.4.weight", "mlp.4.bias", "mlp.6.weight", "mlp.6.bias"),
    ],
}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_dinos_head_has_the_official_names_and_starts(batch_norm: bool) -> None:
    torch.manual_seed(0)
    head = DINOHead(384, 50, 2048, 256, 3, batch_norm, norm_last_layer=False)
    assert [name for name, _ in head.named_parameters()] == [
        *OFFICIAL_DINO[batch_norm],
        "last_layer.weight_g",
        "last_layer.weight_v",
    ]
    assert head.last_layer.weight_g.shape == (50, 1)
    assert torch.equal(head.last_layer.weight_g.detach(), torch.ones(50, 1))
    first = head.mlp[0]  # type: ignore[index]
    assert float(first.weight.detach().std()) == pytest.approx(0.02, rel=0.01)
    assert not first.bias.any()
    # the last layer keeps the start of nn.Linear: uniform within 1/√256
    assert 0.99 / 16 < float(head.last_layer.weight_v.detach().abs().max()) <= 1 / 16


def test_dinos_head_gives_g_times_the_cosine_with_each_prototype() -> None:
    torch.manual_seed(0)
    head, x = DINOHead(6, 5, 8, 4, 2).double(), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        head.last_layer.weight_g.copy_(torch.tensor([[1.0], [2.0], [0.5], [3.0], [1.0]]))
    rows = head.mlp[2](F.gelu(head.mlp[0](x)))  # type: ignore[index]
    for i in range(3):
        for j in range(5):
            v = head.last_layer.weight_v[j]
            cosine = sum(a * b for a, b in zip(rows[i], v, strict=True)) / (
                math.sqrt(sum(float(a.detach()) ** 2 for a in rows[i]))
                * math.sqrt(sum(float(b.detach()) ** 2 for b in v))
            )
            assert float(head(x)[i, j]) == pytest.approx(float(head.last_layer.weight_g[j, 0] * cosine), abs=1e-12)


def test_the_lengths_of_dinos_prototypes_are_trained_only_where_asked_for() -> None:
    assert not DINOHead(6, 5, 8, 4).last_layer.weight_g.requires_grad
    assert DINOHead(6, 5, 8, 4, norm_last_layer=False).last_layer.weight_g.requires_grad
    assert [name for name, _ in DINOHead(6, 5, 8, 4, layers=1).named_parameters()][:2] == ["mlp.weight", "mlp.bias"]
    with pytest.raises(ValueError, match=r"^DINOHead: layers=0"):
        DINOHead(6, 5, 8, 4, layers=0)


def test_dinos_head_computes_its_cosines_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head, x = DINOHead(64, 50, 32, 16), torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head(x), rtol=0, atol=0.02)
