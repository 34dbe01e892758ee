"""SimCLR against the paper, closed forms, and itself on two processes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.forked import spawn
from tests.group import leave
from unlabeled.objective import Backbone, Batch, Plan, Progress
from unlabeled.objectives.simclr import SimCLR, nt_xent


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def literal_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """arXiv:2002.05709, eq. 1 and Algorithm 1, as two loops: rows 2k−1 and 2k are a pair."""
    z = [row for pair in zip(z1, z2, strict=True) for row in pair]
    total = z1.new_zeros(())
    for i in range(len(z)):
        j = i ^ 1  # the other view of the same image
        denominator = z1.new_zeros(())
        for k in range(len(z)):
            if k != i:
                denominator = denominator + torch.exp(cosine(z[i], z[k]) / temperature)
        total = total - torch.log(torch.exp(cosine(z[i], z[j]) / temperature) / denominator)
    return total / len(z)


def embeddings(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + dim)
    z1, z2 = torch.randn(2, batch, dim, dtype=torch.float64, generator=generator)
    return z1.requires_grad_(), z2.requires_grad_()


@pytest.mark.parametrize(("batch", "dim"), [(1, 4), (2, 3), (5, 8)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_loss_and_its_gradients_equal_the_papers_double_loop(batch: int, dim: int, temperature: float) -> None:
    z1, z2 = embeddings(batch, dim)
    loss, expected = nt_xent(z1, z2, temperature), literal_nt_xent(z1, z2, temperature)
    assert abs(float((loss - expected).detach())) < 1e-12
    for ours, theirs in zip(torch.autograd.grad(loss, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_gradient_equals_a_finite_difference() -> None:
    z1, z2 = embeddings(3, 4)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))


@pytest.mark.parametrize("batch", [1, 8, 256])
def test_collapsed_embeddings_give_the_log_of_2b_minus_1(batch: int) -> None:
    z = torch.ones(batch, 16)
    assert float(nt_xent(z, z, 0.1)) == pytest.approx(math.log(2 * batch - 1), abs=1e-5)


def test_orthogonal_pairs_give_the_closed_form() -> None:
    z = torch.eye(6, dtype=torch.float64)  # positives at similarity 1, the 2B−2 negatives at 0
    expected = math.log(math.exp(1 / 0.2) + 10) - 1 / 0.2
    assert float(nt_xent(z, z, 0.2)) == pytest.approx(expected, abs=1e-12)


def test_the_loss_does_not_depend_on_the_scale_or_on_the_order_of_the_views() -> None:
    z1, z2 = embeddings(4, 6)
    assert float(nt_xent(z1 * 7, z2 * 0.1, 0.3)) == pytest.approx(float(nt_xent(z2, z1, 0.3)), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_loss_is_float32_and_finite_for_large_and_for_equal_embeddings(dtype: torch.dtype) -> None:
    z1, z2 = (100 * torch.randn(2, 16, 32)).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        losses = [nt_xent(z1, z2, 0.1), nt_xent(z1[:1].repeat(16, 1), z1[:1].repeat(16, 1), 0.1)]
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert all(math.isfinite(float(loss)) for loss in losses)
    assert float(losses[1]) == pytest.approx(math.log(31), abs=1e-4)


class LinearBackbone(Backbone):
    """No BatchNorm: what two processes compute of it is what one computes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def make_objective(projector: nn.Module) -> SimCLR:
    torch.manual_seed(0)
    objective = SimCLR(LinearBackbone(), projection_layers=2, projection_dim=4, temperature=0.2)
    objective.projector = projector
    return objective.double()


def make_batch(rows: slice) -> Batch:
    views = torch.randn(2, 8, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(8)[rows]
    return Batch(torch.zeros(len(ids), 3, 2, 2, dtype=torch.uint8), ids, ids, (views[0][rows], views[1][rows]))


def loss_and_gradients(rows: slice) -> dict[str, Tensor]:
    torch.manual_seed(3)
    objective = make_objective(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)))
    output = objective(make_batch(rows), Progress(0, 10, 10, 0))
    output.loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    collapsed = torch.tensor(objective.collapsed_at(Plan(8, 1, 8, (2, 2))))
    return {"loss": output.loss.detach(), "collapsed_at": collapsed, **gradients}


def one_of_two(rank: int, folder: str) -> None:
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    result = loss_and_gradients(slice(4 * rank, 4 * rank + 4))
    for name, value in result.items():
        if name != "collapsed_at":  # what DDP does to gradients, and the log to the loss
            torch.distributed.all_reduce(value)
            value /= 2
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    leave()


def test_two_processes_have_the_loss_and_every_gradient_of_one_with_the_joined_batch(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), 2)
    two = torch.load(tmp_path / "result.pt")
    one = loss_and_gradients(slice(0, 8))
    assert two.keys() == one.keys()
    assert len(one) == 2 + 8  # four layers with weight and bias
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=0, atol=1e-12, msg=name)


def test_both_views_go_through_the_network_in_one_forward() -> None:
    objective = make_objective(nn.Identity())
    seen: list[int] = []
    objective.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    output = objective(make_batch(slice(0, 8)), Progress(0, 10, 10, 0))
    assert seen == [16]  # BatchNorm would see the statistics of all 2B images
    torch.testing.assert_close(output.features, objective.backbone(make_batch(slice(0, 8)).views[0]))
    assert not output.features.requires_grad


def test_the_sum_of_both_directions_is_twice_the_mean_and_collapses_at_twice_the_value() -> None:
    losses, plan = [], Plan(8, 1, 8, (2, 2))
    for both in (False, True):
        torch.manual_seed(0)
        objective = SimCLR(LinearBackbone(), 2, 4, 0.2, sum=both).double()
        losses.append(float(objective(make_batch(slice(0, 8)), Progress(0, 10, 10, 0)).loss.detach()))
        assert objective.collapsed_at(plan) == pytest.approx((1 + both) * math.log(15))
    assert losses[1] == 2 * losses[0]


def test_the_projector_may_be_wider_and_without_batchnorm() -> None:
    wide = SimCLR(LinearBackbone(), 3, 4, 0.2, projection_hidden=10).projector
    assert [tuple(each.weight.shape) for each in wide if isinstance(each, nn.Linear)] == [(10, 6), (10, 10), (4, 10)]  # type: ignore[attr-defined]
    plain = SimCLR(LinearBackbone(), 2, 4, 0.2, projection_hidden=10, projection_norm=False).projector
    assert [type(each) for each in plain.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(each.bias is not None for each in plain.children() if isinstance(each, nn.Linear))
