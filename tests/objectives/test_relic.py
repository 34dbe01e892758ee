"""ReLIC and ReLICv2 against loops over the algorithm, closed forms, their own restart, and two processes."""

import copy
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.forked import spawn
from tests.group import leave
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Plan, Progress
from unlabeled.objectives.parts.heads import byol_mlp
from unlabeled.objectives.relic import ReLIC, StopGradient, kl_divergence, relic_loss, sample_negatives

PLAN = Plan(8, 1, 100, (4, 4))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def literal_probabilities(
    online: Tensor, target: Tensor, n: int, others: list[int], temperature: float
) -> list[Tensor]:
    """Of the own image, then of each negative, for anchor n."""
    weights = [torch.exp(cosine(online[n], target[m].detach()) / temperature) for m in [n, *others]]
    return [weight / torch.stack(weights).sum() for weight in weights]


def literal_relic_loss(
    online_a: Tensor,
    online_b: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    negatives: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
    stop_gradient: StopGradient = "entropy",
) -> Tensor:
    """spec 10.3, an anchor and a candidate at a time."""
    total = online_a.new_zeros(())
    for n, others in enumerate(negatives.tolist()):
        p = literal_probabilities(online_a, target_b, n, others, temperature)
        q = literal_probabilities(online_b, target_a, n, others, temperature)
        total = total - alpha * p[0].log()
        for p_m, q_m in zip(p, q, strict=True):
            cross = p_m if stop_gradient == "entropy" else p_m.detach()
            total = total + beta * (p_m.detach() * p_m.detach().log() - cross * q_m.log())
    return total / len(online_a)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def negatives_of(images: int, count: int, seed: int = 0) -> Tensor:
    return sample_negatives(images, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("images", "count"), [(2, 1), (5, 2), (6, 5)])
@pytest.mark.parametrize("stop_gradient", ["entropy", "first_argument"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (0.3, 5.0)])
def test_the_loss_and_its_gradients_equal_the_loop_over_anchors_and_candidates(
    images: int, count: int, stop_gradient: StopGradient, alpha: float, beta: float
) -> None:
    online = [draw(images, 4, seed=seed).requires_grad_() for seed in (0, 1)]
    targets = [draw(images, 4, seed=seed).requires_grad_() for seed in (2, 3)]
    arguments: Any = (*online, *targets, negatives_of(images, count), 0.3, alpha, beta, stop_gradient)
    loss, expected = relic_loss(*arguments), literal_relic_loss(*arguments)
    assert abs(float(loss.detach()) - float(expected.detach())) < 1e-12
    ours, theirs = (
        torch.autograd.grad(each, [*online, *targets], allow_unused=True, materialize_grads=True)
        for each in (loss, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert [float(gradient.abs().max()) for gradient in ours[2:]] == [0, 0]


def test_the_gradient_equals_a_finite_difference_where_nothing_is_held() -> None:
    fixed = draw(4, 3, seed=2)
    negatives = negatives_of(4, 2)

    def contrast_alone(online: Tensor) -> Tensor:
        return relic_loss(online, fixed, fixed, fixed, negatives, 0.5, alpha=1.0, beta=0.0)

    def divergence_from_fixed(online: Tensor) -> Tensor:  # p(a→b) does not see online_b
        return relic_loss(fixed, online, fixed, fixed, negatives, 0.5, alpha=0.0, beta=1.0)

    for function in (contrast_alone, divergence_from_fixed):
        assert torch.autograd.gradcheck(function, (draw(4, 3).requires_grad_(),))


@pytest.mark.parametrize("count", [1, 10, 63])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_collapsed_embeddings_give_alpha_times_the_log_of_the_candidates(count: int, alpha: float) -> None:
    ones = torch.ones(64, 16)
    loss = relic_loss(ones, ones, ones, ones, negatives_of(64, count), 0.2, alpha, 5.0)
    assert float(loss) == pytest.approx(alpha * math.log(count + 1), abs=1e-5)  # 2.40 for ten negatives


def test_orthogonal_images_give_the_closed_form_and_equal_distributions_no_divergence() -> None:
    unit = torch.eye(12, dtype=torch.float64)
    expected = math.log(1 + 10 * math.exp(-1 / 0.2))
    loss = relic_loss(unit, 2 * unit, 3 * unit, 5 * unit, negatives_of(12, 10), 0.2, 1.0, 5.0)
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_two_known_distributions_give_the_known_divergence() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(kl_divergence(p.log(), q.log(), "entropy")) == pytest.approx(expected, abs=1e-7)
    assert float(kl_divergence(p.log(), q.log(), "first_argument")) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_loss_is_float32_and_finite_for_large_and_for_equal_embeddings(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    large = list((100 * torch.randn(4, 16, 32)).to(dtype))
    same = large[0][:1].repeat(16, 1)
    negatives = negatives_of(16, 10)
    with torch.autocast("cpu", dtype=dtype):
        losses = [relic_loss(a, b, c, d, negatives, 0.2, 0.3, 5.0) for a, b, c, d in (large, [same] * 4)]
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert all(math.isfinite(float(loss)) for loss in losses)
    assert float(losses[1]) == pytest.approx(0.3 * math.log(11), abs=1e-4)


@pytest.mark.parametrize(("images", "count"), [(2, 1), (5, 4), (40, 10), (40, 38), (2000, 1999)])
def test_negatives_are_other_images_and_none_twice(images: int, count: int) -> None:
    negatives = negatives_of(images, count)
    assert negatives.shape == (images, count)
    for n, others in enumerate(negatives.tolist()):
        assert n not in others
        assert len(set(others)) == count
        assert set(others) <= set(range(images))


def test_every_subset_of_negatives_is_alike_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(itertools.combinations([0, 1, 3, 4], 2), 0)
    for _ in range(6000):
        counts[tuple(sorted(sample_negatives(5, 2, generator)[2].tolist()))] += 1
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_squared < 20.5  # 5 degrees of freedom, 1e-3


class MeanBackbone(Backbone):
    """Images of any size; no BatchNorm, so that two processes compute what one does."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images.mean((2, 3)))
        return features


def make_objective(**changed: Any) -> ReLIC:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "hidden_dim": 8,
        "projection_dim": 4,
        "predictor": True,
        "temperature": 0.3,
        "alpha": 0.7,
        "beta": 2.0,
        "negatives": 3,
        "stop_gradient": "entropy",
        "include_same_view": True,
        "small_invariance": False,
        "momentum": 0.9,
    }
    objective = ReLIC(MeanBackbone(), **(given | changed))
    objective.projector = nn.Linear(6, 4)
    objective.target_projector = copy.deepcopy(objective.projector).requires_grad_(False)
    if given["predictor"]:
        objective.predictor = nn.Linear(4, 4)
    return objective.double()


def make_batch(where: slice = slice(0, 8), large: int = 3, small: int = 2, step: int = 0) -> Batch:
    ids = torch.arange(8)[where]
    views = [draw(8, 3, 4, 4, seed=10 * step + view)[where] for view in range(large)]
    views += [draw(8, 3, 2, 2, seed=10 * step + large + view)[where] for view in range(small)]
    return Batch(torch.zeros(len(ids), 3, 4, 4, dtype=torch.uint8), ids, ids, tuple(views))


def embeddings(objective: ReLIC, batch: Batch, large: int) -> tuple[list[Tensor], list[Tensor]]:
    online = [objective.predictor(objective.projector(objective.backbone(view))) for view in batch.views]
    with torch.no_grad():
        targets = [objective.target_projector(objective.target_backbone(view)) for view in batch.views[:large]]
    return online, targets


@pytest.mark.parametrize("include_same_view", [True, False])
@pytest.mark.parametrize(("large", "small"), [(2, 0), (3, 2), (4, 1)])
def test_the_whole_loss_is_algorithm_1_pair_by_pair(large: int, small: int, include_same_view: bool) -> None:
    objective = make_objective(include_same_view=include_same_view)
    batch = make_batch(large=large, small=small)
    output = objective(batch, Progress(3, 10, 5, 1))
    online, targets = embeddings(objective, batch, large)
    negatives = objective._negatives(8, Progress(3, 10, 5, 1))
    contrasts, divergences = [], []
    for i in range(large + small):
        for j in range(large):
            if i == j and not include_same_view:
                continue
            o = online[j] if i < large else online[0]
            t = targets[i] if i < large else targets[0]
            contrasts.append(literal_relic_loss(online[i], o, t, targets[j], negatives, 0.3, alpha=1.0, beta=0.0))
            if i < large and i != j:
                divergences.append(literal_relic_loss(online[i], o, t, targets[j], negatives, 0.3, alpha=0.0, beta=1.0))
    assert len(contrasts) == (large + small) * large - (0 if include_same_view else large)
    assert len(divergences) == large * (large - 1)  # β is not made smaller by pairs that have no invariance term
    expected = 0.7 * torch.stack(contrasts).mean() + 2.0 * torch.stack(divergences).mean()
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)


def test_a_small_view_may_be_held_to_what_the_next_large_view_sees() -> None:
    batch = make_batch(large=2, small=1)
    objective, without = make_objective(small_invariance=True), make_objective()
    progress = Progress(0, 10, 5, 0)
    both, large_only = objective(batch, progress), without(batch, progress)
    of_large = float(large_only.metrics["divergence"])  # mean over the 2 pairs of large views
    extra = 4 * float(both.metrics["divergence"]) - 2 * of_large  # of the 2 pairs with the small view
    online, targets = embeddings(objective, batch, 2)
    negatives = objective._negatives(8, progress)
    expected = torch.zeros((), dtype=torch.float64)
    for j, reference in ((0, 1), (1, 0)):
        for n, others in enumerate(negatives.tolist()):
            p = literal_probabilities(online[reference].detach(), targets[j], n, others, 0.3)
            q = literal_probabilities(online[2], targets[j], n, others, 0.3)
            expected = expected + sum(p_m * (p_m / q_m).log() for p_m, q_m in zip(p, q, strict=True)) / 8
    assert extra == pytest.approx(float(expected.detach()), abs=1e-12)
    assert float(both.loss.detach()) == pytest.approx(
        float(large_only.loss.detach()) + 2.0 * (float(both.metrics["divergence"]) - of_large), abs=1e-12
    )


def test_the_target_network_follows_after_the_step_with_the_new_weights_and_rises_to_one() -> None:
    objective = make_objective()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5)
    for step in (0, 7):
        progress = Progress(step, 10, 5, 0)
        before = copy.deepcopy(objective)
        optimizer.zero_grad()
        objective(make_batch(), progress).loss.backward()
        optimizer.step()
        untouched = list(before.target_backbone.parameters())
        torch.testing.assert_close(list(objective.target_backbone.parameters()), untouched, rtol=0, atol=0)
        objective.after_step(progress)
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        for name in ("backbone", "projector"):
            now, new, old = (
                getattr(module, attribute).parameters()
                for module, attribute in ((objective, f"target_{name}"), (objective, name), (before, f"target_{name}"))
            )
            for ours, online, target in zip(now, new, old, strict=True):
                expected = momentum * target + (1 - momentum) * online
                torch.testing.assert_close(ours, expected.detach(), rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_target_network_and_its_batchnorm_statistics_are_its_own() -> None:
    torch.manual_seed(0)
    objective = make_objective()
    objective.projector = byol_mlp(6, 8, 4).double()
    objective.target_projector = copy.deepcopy(objective.projector).requires_grad_(False)
    output = objective(make_batch(), Progress(0, 10, 5, 0))
    output.loss.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name
    objective.after_step(Progress(0, 10, 5, 0))
    state = objective.state_dict()
    ours, theirs = state["projector.1.running_mean"], state["target_projector.1.running_mean"]
    assert float(theirs.abs().max()) > 1e-3  # it saw batches in training mode
    assert float((ours - theirs).abs().max()) > 1e-3  # fewer ones: no small views
    assert not output.features.requires_grad
    torch.testing.assert_close(output.features, objective.backbone(make_batch().views[0]))


def test_small_views_never_enter_the_target_network_and_each_view_goes_through_alone() -> None:
    objective = make_objective()
    seen: dict[str, list[tuple[int, ...]]] = {"backbone": [], "target_backbone": []}
    for name, sizes in seen.items():
        getattr(objective, name).register_forward_hook(
            lambda module, inputs, output, sizes=sizes: sizes.append((len(inputs[0]), inputs[0].shape[-1]))
        )
    objective(make_batch(), Progress(0, 10, 5, 0))
    assert seen == {"backbone": [(8, 4)] * 3 + [(8, 2)] * 2, "target_backbone": [(8, 4)] * 3}


def test_negatives_follow_seed_and_step_and_none_means_the_whole_batch() -> None:
    objective, everyone = make_objective(), make_objective(negatives=None)
    first, again, later, other = (
        objective._negatives(8, Progress(step, 10, 5, seed)) for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert [set(row) for row in everyone._negatives(8, Progress(0, 10, 5, 0)).tolist()] == [
        set(range(8)) - {n} for n in range(8)
    ]
    assert everyone.collapsed_at(PLAN) == pytest.approx(0.7 * math.log(8))
    assert objective.collapsed_at(PLAN) == pytest.approx(0.7 * math.log(4))


def test_the_share_of_images_that_are_found_is_that_of_the_loop_and_none_where_all_embeddings_are_equal() -> None:
    objective, batch = make_objective(include_same_view=False), make_batch(large=2, small=0)
    online, targets = embeddings(objective, batch, 2)
    negatives = objective._negatives(8, Progress(0, 10, 5, 0))
    found = [
        max(others := literal_probabilities(online[i], targets[1 - i], n, row, 0.3)) is others[0]
        for i in (0, 1)
        for n, row in enumerate(negatives.tolist())
    ]
    output = objective(batch, Progress(0, 10, 5, 0))
    assert float(output.metrics["instance_top1"]) == pytest.approx(sum(found) / 16)
    assert 0 < sum(found) < 16
    nn.init.zeros_(objective.projector.weight)  # type: ignore[arg-type]
    nn.init.zeros_(objective.target_projector.weight)  # type: ignore[arg-type]
    collapsed = objective(batch, Progress(0, 10, 5, 0))
    assert float(collapsed.metrics["instance_top1"]) == 0
    assert float(collapsed.loss.detach()) == pytest.approx(objective.collapsed_at(PLAN), abs=1e-12)


def test_state_survives_save_and_load_bit_for_bit() -> None:
    objective, other = make_objective(), make_objective()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5)
    progress = Progress(0, 10, 5, 0)
    objective(make_batch(), progress).loss.backward()
    optimizer.step()
    objective.after_step(progress)
    file = io.BytesIO()
    torch.save(objective.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    progress = Progress(1, 10, 5, 0)
    losses = [each(make_batch(step=1), progress).loss for each in (objective, other)]
    assert torch.equal(*losses)
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in objective.state_dict())


def loss_and_gradients(where: slice) -> dict[str, Tensor]:
    objective = make_objective(small_invariance=True)
    output = objective(make_batch(where), Progress(2, 10, 5, 4))
    output.loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach(), **output.metrics, **gradients}


def one_of_two(rank: int, folder: str) -> None:
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    result = loss_and_gradients(slice(4 * rank, 4 * rank + 4))
    for value in result.values():  # what DDP does to gradients, and the log to the loss
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
    assert len(one) == 1 + 3 + 8  # loss, metrics, four layers with weight and bias
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=0, atol=1e-12, msg=name)


def test_what_cannot_work_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^objective\.stop_gradient=both: allowed are entropy and first_argument$"):
        make_objective(stop_gradient="both")
    with pytest.raises(UserError, match=r"^objective\.negatives=0"):
        make_objective(negatives=0)
    with pytest.raises(UserError, match=r"^objective\.momentum=1\.5"):
        make_objective(momentum=1.5)
    with pytest.raises(UserError, match=r"^objective\.negatives=3: a batch_size of 3 has 2 other images$"):
        make_objective().check(Plan(3, 1, 100, [4, 4]))
    with pytest.raises(UserError, match=r"^views: these make 1 of an image, the objective takes at least 2"):
        make_objective().check(Plan(8, 1, 100, [4]))
    for sizes in ([4, 2], [2, 4, 4], [2, 2, 4]):
        with pytest.raises(UserError, match=r"^views: two or more large views come first, then small ones; here \["):
            make_objective().check(Plan(8, 1, 100, sizes))
    make_objective().check(Plan(4, 1, 100, [4, 4, 2]))
