"""PAWS against a literal loop of the paper, closed forms, and itself on several processes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.forked import spawn
from tests.group import leave
from unlabeled import distributed
from unlabeled.data.support import ClassBalanced
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Output, Plan, Progress, Support
from unlabeled.objectives.paws import PAWS, paws_loss, sharpen_probabilities, soft_nearest_neighbours

B, D, S, K = 4, 6, 6, 3
LABELS = 0.9 * torch.eye(K, dtype=torch.float64).repeat(2, 1) + 0.1 / K


def draw(rows: int, seed: int, width: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, dtype=torch.float64, generator=generator).requires_grad_()


def literal_probabilities(query: Tensor, supports: Tensor, labels: Tensor, temperature: float) -> list[Tensor]:
    """Equation 1 for one query, one support and one class at a time."""
    weights = []
    for support in supports:
        cosine = (query * support).sum() / ((query * query).sum().sqrt() * (support * support).sum().sqrt())
        weights.append(torch.exp(cosine / temperature))
    whole = torch.stack(weights).sum()
    return [
        torch.stack([w / whole * y[k] for w, y in zip(weights, labels, strict=True)]).sum()
        for k in range(labels.shape[1])
    ]


def literal_sharpened(p: list[Tensor], sharpen: float) -> list[Tensor]:
    total = torch.stack([each ** (1 / sharpen) for each in p]).sum()
    return [each ** (1 / sharpen) / total for each in p]


def literal_loss(
    views: list[Tensor], supports: Tensor, swapped: list[Tensor], target_supports: Tensor, temperature: float, t: float
) -> tuple[Tensor, Tensor]:
    """Sections 3 and 4 of the paper with the official code's zeroing; ``views`` are the anchors of each view."""
    images = len(views[0])
    cross_entropy, mean = views[0].new_zeros(()), [views[0].new_zeros(()) for _ in range(K)]
    for number, view in enumerate(views):
        for image in range(images):
            p = literal_probabilities(view[image], supports, LABELS, temperature)
            wanted = []
            for other in swapped:
                d = literal_probabilities(other[image].detach(), target_supports.detach(), LABELS, temperature)
                wanted.append(literal_sharpened(d, t))
            small = [(a + b) / 2 for a, b in zip(*wanted, strict=True)]
            target = wanted[number] if number < 2 else small
            for k in range(K):
                if target[k] >= 1e-4:
                    cross_entropy = cross_entropy - target[k] * p[k].log() / (images * len(views))
            for k, value in enumerate(literal_sharpened(p, t)):
                mean[k] = mean[k] + value / (images * len(views))
    return cross_entropy, torch.stack([m * m.log() for m in mean]).sum()


@pytest.mark.parametrize("small_views", [0, 1, 3])
@pytest.mark.parametrize(("temperature", "sharpen"), [(0.1, 0.25), (0.5, 0.5), (0.3, 1.0)])
def test_both_parts_of_the_loss_and_their_gradients_equal_the_papers_loop(
    small_views: int, temperature: float, sharpen: float
) -> None:
    anchors, supports = draw((2 + small_views) * B, 0), draw(S, 1)
    targets, target_supports = draw(2 * B, 2), draw(S, 3)
    found = paws_loss(anchors, supports, targets, target_supports, LABELS, small_views, temperature, sharpen)
    expected = literal_loss(
        list(torch.split(anchors, B)), supports, list(torch.split(targets, B)), target_supports, temperature, sharpen
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        gradients = torch.autograd.grad(ours, [anchors, supports], retain_graph=True)
        torch.testing.assert_close(
            gradients, torch.autograd.grad(theirs, [anchors, supports], retain_graph=True), rtol=0, atol=1e-12
        )


def test_targets_and_their_supports_get_no_gradient() -> None:
    anchors, supports, targets, target_supports = draw(2 * B, 0), draw(S, 1), draw(2 * B, 2), draw(S, 3)
    loss = sum(paws_loss(anchors, supports, targets, target_supports, LABELS, 0, 0.1, 0.25))
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, [anchors, supports, targets, target_supports], allow_unused=True)
    assert [gradient is None for gradient in gradients] == [False, False, True, True]


def test_probabilities_sum_to_one_and_follow_the_only_near_support() -> None:
    probabilities = soft_nearest_neighbours(draw(5, 0), draw(S, 1), LABELS, 0.1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)
    supports = torch.eye(K, dtype=torch.float64)  # a query at support 0: cosine 1 with it, 0 with the others
    probability = soft_nearest_neighbours(5 * supports[:1], 7 * supports, torch.eye(K), 0.1)[0, 0]
    assert float(probability) == pytest.approx(1 / (1 + (K - 1) * math.exp(-10)), abs=1e-14)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_equal_embeddings_give_plus_and_minus_the_log_of_the_number_of_classes(classes: int) -> None:
    same, supports = torch.ones(8, D), torch.ones(2 * classes, D)
    labels = torch.eye(classes).repeat(2, 1)
    cross_entropy, me_max = paws_loss(same, supports, same[:4], supports, labels, 2, 0.1, 0.25)
    assert float(cross_entropy) == pytest.approx(math.log(classes), abs=1e-4)
    assert float(me_max) == pytest.approx(-math.log(classes), abs=1e-4)


def test_sure_and_right_predictions_of_balanced_classes_give_the_best_value_and_of_one_class_zero() -> None:
    each, one = 3 * torch.eye(K, dtype=torch.float64), torch.eye(K, dtype=torch.float64)[:1].repeat(K, 1)
    p = [math.exp(100) / (math.exp(100) + K - 1), 1 / (math.exp(100) + K - 1)]
    cross_entropy, me_max = paws_loss(each.repeat(2, 1), each, each.repeat(2, 1), each, torch.eye(K), 0, 0.01, 0.25)
    assert float(cross_entropy) == pytest.approx(-math.log(p[0]), abs=1e-12)
    assert float(me_max) == pytest.approx(-math.log(K), abs=1e-12)
    cross_entropy, me_max = paws_loss(one.repeat(2, 1), each, one.repeat(2, 1), each, torch.eye(K), 0, 0.01, 0.25)
    assert float(cross_entropy + me_max) == pytest.approx(0, abs=1e-12)


def test_the_first_anchors_follow_the_first_rows_of_the_targets_and_small_ones_the_mean_of_both() -> None:
    axes = torch.eye(K, dtype=torch.float64)
    first, second, both = axes[:1], axes[1:2], axes[:1] + axes[1:2]

    def of(anchors: list[Tensor], small_views: int) -> float:
        found = paws_loss(torch.cat(anchors), axes, torch.cat([first, second]), axes, axes, small_views, 0.1, 0.25)
        return float(found[0])

    assert of([first, second], 0) == pytest.approx(math.log1p(2 * math.exp(-10)), abs=1e-12)
    assert of([second, first], 0) == pytest.approx(10 + math.log1p(2 * math.exp(-10)), abs=1e-3)
    # a small view between the two is right: its cross-entropy with half and half is ln 2 and what class 3 takes
    between = math.log(2 + math.exp(-(0.5**0.5) / 0.1))
    large = 2 * math.log1p(2 * math.exp(-10))
    assert of([first, second, both], 1) == pytest.approx((large + between) / 3, abs=1e-7)


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("sharpen", [0.25, 0.05])
def test_sharpening_many_classes_is_finite_in_float32_and_keeps_a_row_of_equal_ones(
    classes: int, sharpen: float
) -> None:
    equal = torch.full((2, classes), 1 / classes)
    torch.testing.assert_close(sharpen_probabilities(equal, sharpen), equal, rtol=1e-5, atol=0)
    steep = torch.zeros(1, classes)
    steep[0, 0] = 1
    assert torch.equal(sharpen_probabilities(steep, sharpen), steep)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["large", "identical"])
def test_in_16_bits_the_loss_is_float32_and_that_of_the_lifted_embeddings(dtype: torch.dtype, kind: str) -> None:
    given = [draw(rows, seed).detach().to(dtype) for seed, rows in enumerate((4 * B, S, 2 * B, S))]
    given = [100 * rows if kind == "large" else rows[:1].repeat(len(rows), 1) for rows in given]
    given[0].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        found = paws_loss(given[0], given[1], given[2], given[3], LABELS.float(), 2, 0.1, 0.25)
    lifted = [rows.detach().float() for rows in given]
    expected = paws_loss(lifted[0], lifted[1], lifted[2], lifted[3], LABELS.float(), 2, 0.1, 0.25)
    assert {part.dtype for part in found} == {torch.float32}
    assert [part.item() for part in found] == [part.item() for part in expected]
    (found[0] + found[1]).backward()  # type: ignore[no-untyped-call]
    assert given[0].grad is not None
    assert bool(given[0].grad.isfinite().all())


def test_a_probability_that_underflows_to_zero_gives_a_finite_loss_and_gradient() -> None:
    axes = torch.eye(K)
    anchors = torch.cat([axes[1:2], axes[:1]]).requires_grad_()  # both views are sure, of different classes
    cross_entropy, me_max = paws_loss(anchors, axes, anchors, axes, axes, 0, 0.005, 0.25)
    (cross_entropy + me_max).backward()  # type: ignore[no-untyped-call]
    assert bool(cross_entropy.isfinite())
    assert anchors.grad is not None
    assert bool(anchors.grad.isfinite().all())


class LinearBackbone(Backbone):
    """No BatchNorm: what two processes compute of it is what one computes. Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images.mean((2, 3)))
        return features


def settings(classes: int = 3, images: int = 4, views: int = 1) -> ClassBalanced:
    return ClassBalanced(None, None, 4, 0, classes, images, views)


def make_objective(prediction_head: bool = True, views: int = 1) -> PAWS:
    torch.manual_seed(0)
    objective = PAWS(LinearBackbone(), [7, 7], 8, prediction_head, 0.1, 0.1, 0.25, settings(views=views))
    return objective.double()


def without_batch_norm(objective: PAWS) -> PAWS:
    """Statistics of several processes differ from those of one, unless synchronised, which takes GPUs."""
    for head in (objective.projector, objective.predictor):
        assert isinstance(head, nn.Sequential)
        for place, module in enumerate(head):
            if isinstance(module, nn.BatchNorm1d):
                head[place] = nn.Identity()
    return objective


def make_batch(step: int, process: int = 0, processes: int = 1, views: int = 1) -> Batch:
    """Two views of 4 pixels and two of 2 of eight images, and twelve supports."""
    generator = torch.Generator().manual_seed(step)

    def noise(rows: int, size: int) -> Tensor:
        whole = torch.randn(rows, 3, size, size, dtype=torch.float64, generator=generator)
        return whole.chunk(processes)[process]

    made = tuple(noise(8, size) for size in (4, 4, 2, 2))
    supports = tuple(noise(12, 4) for _ in range(views))
    ids, slots = torch.arange(len(made[0])), (torch.arange(12) % 3).chunk(processes)[process]
    support = Support(torch.zeros(len(slots), 3, 4, 4, dtype=torch.uint8), slots, slots, supports)
    return Batch(torch.zeros(len(ids), 3, 4, 4, dtype=torch.uint8), ids, ids, made, support)


PROGRESS = Progress(0, 4, 2, 0)


def output_of(objective: PAWS, batch: Batch) -> Output:
    output: Output = objective(batch, PROGRESS)
    return output


def everything(process: int, processes: int) -> dict[str, Tensor]:
    """Loss, its parts and all gradients averaged as DDP does, and probabilities of this process's queries."""
    objective = without_batch_norm(make_objective())
    batch = make_batch(0, process, processes)
    output = output_of(objective, batch)
    output.loss.backward()  # type: ignore[no-untyped-call]
    kept = {name: distributed.total(value) / processes for name, value in output.metrics.items()}
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None
        kept[f"gradient of {name}"] = distributed.total(parameter.grad) / processes
    assert batch.support is not None
    supports = distributed.gather(objective.backbone(batch.support.views[0]).detach())
    labels = distributed.gather(objective._labels(batch.support, torch.float64))
    queries = objective.backbone(batch.views[0]).detach()
    return kept | {"predictions": distributed.gather(soft_nearest_neighbours(queries, supports, labels, 0.1))}


def one_of_several(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=processes)
    torch.save(everything(rank, processes), f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_have_the_loss_gradients_and_support_predictions_of_one(
    tmp_path: Path, processes: int
) -> None:
    spawn(one_of_several, (processes, str(tmp_path)), processes)
    one = everything(0, 1)
    assert len([name for name in one if "gradient" in name]) == 4 + 6 + 4
    for rank in range(processes):
        several = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(several, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction_head", [True, False])
@pytest.mark.parametrize("views", [1, 2])
def test_the_objective_is_one_forward_of_supports_and_large_views_one_of_small_ones_and_swapped_targets(
    prediction_head: bool, views: int
) -> None:
    objective, by_hand = make_objective(prediction_head, views), make_objective(prediction_head, views)
    batch = make_batch(0, views=views)
    assert batch.support is not None
    seen: list[int] = []
    for module in (objective.backbone, objective.projector, objective.predictor):
        module.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    output = output_of(objective, batch)
    rows = 12 * views
    assert seen == [rows + 16] * 3 + [16] * 3

    features = by_hand.backbone(torch.cat([*batch.support.views, batch.views[0], batch.views[1]]))
    before = by_hand.projector(features)  # BatchNorm over supports and large views together
    after = by_hand.predictor(before)
    small = by_hand.predictor(by_hand.projector(by_hand.backbone(torch.cat(batch.views[2:]))))
    labels = (0.9 * torch.eye(3).double() + 0.1 / 3).repeat(4 * views, 1)
    swapped = torch.cat([before[rows + 8 :], before[rows : rows + 8]])
    expected = paws_loss(torch.cat([after[rows:], small]), after[:rows], swapped, before[:rows], labels, 2, 0.1, 0.25)
    torch.testing.assert_close(output.loss, expected[0] + expected[1], rtol=0, atol=1e-14)
    torch.testing.assert_close(output.features, features[rows : rows + 8])
    assert not output.features.requires_grad
    for name, value in by_hand.state_dict().items():  # running statistics of both forwards
        torch.testing.assert_close(objective.state_dict()[name], value, rtol=0, atol=1e-14)


def test_without_small_views_there_is_one_forward_and_the_metrics_add_up() -> None:
    objective = make_objective()
    batch = make_batch(0)
    output = output_of(objective, batch._replace(views=batch.views[:2]))
    metrics = output.metrics
    assert output.loss.item() == (metrics["cross_entropy"] + metrics["me_max"]).item()
    assert float(metrics["effective_classes"]) == pytest.approx(math.exp(-float(metrics["me_max"])))
    assert 1 <= float(metrics["effective_classes"]) <= 3


def test_a_network_with_equal_embeddings_has_the_loss_that_collapsed_at_says() -> None:
    objective = make_objective(prediction_head=False)
    last = objective.projector[-1]  # type: ignore[index]
    nn.init.zeros_(last.weight)
    output = output_of(objective, make_batch(0))
    assert objective.collapsed_at(Plan(8, 1, 8, (4, 4))) == 0
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert float(output.metrics["cross_entropy"]) == pytest.approx(math.log(3), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_a_step_is_finite_and_its_loss_float32(dtype: torch.dtype) -> None:
    objective = make_objective().float()
    batch = make_batch(0)
    assert batch.support is not None
    support = batch.support._replace(views=tuple(view.float() for view in batch.support.views))
    batch = batch._replace(views=tuple(view.float() for view in batch.views), support=support)
    with torch.autocast("cpu", dtype=dtype):
        output = output_of(objective, batch)
    assert output.loss.dtype == torch.float32
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in objective.parameters())


def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def train(objective: PAWS, steps: range) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        for step in steps:
            optimizer.zero_grad()
            output_of(objective, make_batch(step)).loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: value.clone() for name, value in objective.state_dict().items()}

    straight = make_objective()
    train(straight, range(2))
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    resumed = make_objective()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected, found = train(straight, range(2, 4)), train(resumed, range(2, 4))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_head_is_projector_and_prediction_head() -> None:
    objective = make_objective().eval()
    rows = draw(3, 0)
    head = objective.head()
    assert head is not None
    torch.testing.assert_close(head(rows), objective.predictor(objective.projector(rows)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label_smoothing": 1.0}, "objective.label_smoothing=1.0: must be at least 0 and below 1"),
        ({"temperature": 0.0}, "objective.temperature=0.0: must be above 0"),
        ({"sharpen": 2.0}, "objective.sharpen=2.0: must be above 0 and at most 1"),
        ({"support": settings(views=3)}, "objective.support.views=3: only the 2 large views, so at most 2"),
        (
            {"projection_dim": 6},
            "objective.projection_dim=6: must be a multiple of 4 with objective.prediction_head=true",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(changed: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "projection_hidden": [7, 7],
        "projection_dim": 8,
        "prediction_head": True,
        "label_smoothing": 0.1,
        "temperature": 0.1,
        "sharpen": 0.25,
        "support": settings(),
    }
    with pytest.raises(UserError) as caught:
        PAWS(LinearBackbone(), **(given | changed))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_batch_without_supports_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective=paws needs labelled images beside each batch"):
        make_objective()(make_batch(0)._replace(support=None), PROGRESS)


def test_fewer_than_two_views_or_two_of_different_sizes_are_refused_before_an_image_is_read() -> None:
    make_objective().check(Plan(8, 1, 100, [4, 4, 2]))
    with pytest.raises(UserError, match=r"^views: these make 1 of an image, the objective takes at least 2: give"):
        make_objective().check(Plan(8, 1, 100, [4]))
    with pytest.raises(UserError, match=r"^views: the first 2 of objective=paws are the large ones, of one size; here"):
        make_objective().check(Plan(8, 1, 100, [4, 2, 2]))
