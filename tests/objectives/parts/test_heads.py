"""Projectors, counted by hand."""

import pytest
import torch
from torch import nn

from unlabeled.errors import UserError
from unlabeled.objectives.parts.heads import simclr_projector, swav_projector


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
