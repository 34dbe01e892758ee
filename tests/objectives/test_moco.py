"""MoCo against the papers, closed forms, its own restart, and itself on two processes."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.forked import spawn
from tests.group import leave
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Objective, Plan, Progress
from unlabeled.objectives.moco import (
    KeyQueue,
    MoCo,
    MoCoV3,
    batch_contrast,
    encode_shuffled,
    moco_projector,
    moco_v3_head,
    queue_contrast,
)
from unlabeled.objectives.parts import ema

PLAN = Plan(8, 1, 100, (4, 4))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def literal_queue_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """arXiv:1911.05722, eq. 1, as a loop over queries and one over the K+1 keys."""
    total = q.new_zeros(())
    for i in range(len(q)):
        positive = torch.exp(cosine(q[i], k[i]) / temperature)
        denominator = positive
        for j in range(len(queue)):
            denominator = denominator + torch.exp(cosine(q[i], queue[j]) / temperature)
        total = total - torch.log(positive / denominator)
    return total / len(q)


def literal_batch_contrast(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """arXiv:2104.02057, Algorithm 1: ctr(q1, k2) + ctr(q2, k1), each a mean over queries times 2T."""
    total = q1.new_zeros(())
    for q, k in ((q1, k2), (q2, k1)):
        for i in range(len(q)):
            similarities = [torch.exp(cosine(q[i], key) / temperature) for key in k]
            total = total - 2 * temperature * torch.log(similarities[i] / torch.stack(similarities).sum()) / len(q)
    return total


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "dim", "size"), [(1, 4, 1), (2, 3, 7), (5, 8, 12)])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_loss_over_a_queue_and_its_gradient_equal_the_papers_loop(
    batch: int, dim: int, size: int, temperature: float
) -> None:
    q, k = draw(batch, dim).requires_grad_(), draw(batch, dim, seed=1)
    queue = F.normalize(draw(size, dim, seed=2), dim=1)
    loss, expected = (
        queue_contrast(q, k, queue, temperature),
        literal_queue_contrast(q, k, queue, temperature),
    )
    assert abs(float(loss.detach()) - float(expected.detach())) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(each, q)[0] for each in (loss, expected)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("batch", "dim"), [(1, 4), (2, 3), (5, 8)])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_within_a_batch_and_its_gradients_equal_the_papers_loop(
    batch: int, dim: int, temperature: float
) -> None:
    q1, q2, k1, k2 = (draw(batch, dim, seed=seed) for seed in range(4))
    queries = [q1.requires_grad_(), q2.requires_grad_()]
    loss, expected = (each(q1, q2, k1, k2, temperature) for each in (batch_contrast, literal_batch_contrast))
    assert abs(float(loss.detach()) - float(expected.detach())) < 1e-12
    gradients = (torch.autograd.grad(each, queries) for each in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_gradients_equal_a_finite_difference() -> None:
    q, k, queue = draw(3, 4).requires_grad_(), draw(3, 4, seed=1), F.normalize(draw(5, 4, seed=2), dim=1)
    assert torch.autograd.gradcheck(lambda x: queue_contrast(x, k, queue, 0.5), (q,))
    q2 = draw(3, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: batch_contrast(x, y, k, k, 0.5), (q, q2))


@pytest.mark.parametrize("size", [1, 64, 65536])
def test_collapsed_embeddings_give_the_log_of_the_queue_plus_one(size: int) -> None:
    ones = torch.ones(4, 16)
    loss = queue_contrast(ones, ones, F.normalize(torch.ones(size, 16), dim=1), 0.07)
    assert float(loss) == pytest.approx(math.log(size + 1), abs=1e-4)


@pytest.mark.parametrize(("temperature", "batch"), [(1.0, 64), (0.2, 16)])
def test_collapsed_embeddings_give_four_temperatures_times_the_log_of_the_batch(temperature: float, batch: int) -> None:
    ones = torch.ones(batch, 16)
    expected = 4 * temperature * math.log(batch)
    assert float(batch_contrast(ones, ones, ones, ones, temperature)) == pytest.approx(expected, abs=1e-4)


def test_a_perfect_query_among_orthogonal_keys_gives_the_closed_forms() -> None:
    unit = torch.eye(8, dtype=torch.float64)
    expected = math.log(1 + 6 * math.exp(-1 / 0.2))  # one key at similarity 1, six at 0
    assert float(queue_contrast(3 * unit[:2], 5 * unit[:2], unit[2:], 0.2)) == pytest.approx(expected, abs=1e-12)
    expected = 4 * 0.2 * math.log(1 + 7 * math.exp(-1 / 0.2))
    assert float(batch_contrast(unit, 2 * unit, unit, 3 * unit, 0.2)) == pytest.approx(expected, abs=1e-12)


def test_keys_and_queue_get_no_gradient_and_the_queue_may_change_before_backward() -> None:
    q, k, queue = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_(), draw(5, 4, seed=2)
    queue = F.normalize(queue, dim=1).requires_grad_()
    to_q, to_k, to_queue = torch.autograd.grad(
        queue_contrast(q, k, queue, 0.2), [q, k, queue], allow_unused=True, materialize_grads=False
    )
    assert [to_k, to_queue] == [None, None]
    loss = queue_contrast(q, k, queue, 0.2) + batch_contrast(q, q, k, k, 0.2)
    queue.data.zero_()
    loss.backward()  # type: ignore[no-untyped-call]
    assert k.grad is None
    alone = torch.autograd.grad(batch_contrast(q, q, k, k, 0.2), q)[0]
    torch.testing.assert_close(q.grad, to_q + alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_losses_are_float32_and_finite_for_large_and_for_equal_embeddings(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b, c, d = (100 * torch.randn(4, 16, 32)).to(dtype)
    same = a[:1].repeat(16, 1)
    queue, equal_queue = F.normalize(torch.randn(64, 32), dim=1), F.normalize(same.float(), dim=1)
    with torch.autocast("cpu", dtype=dtype):
        losses = [
            queue_contrast(a, b, queue, 0.07),
            batch_contrast(a, b, c, d, 0.2),
            queue_contrast(same, same, equal_queue, 0.07),
            batch_contrast(same, same, same, same, 0.2),
        ]
    assert [loss.dtype for loss in losses] == [torch.float32] * 4
    assert all(math.isfinite(float(loss)) for loss in losses)
    assert float(losses[2]) == pytest.approx(math.log(17), abs=1e-4)
    assert float(losses[3]) == pytest.approx(0.8 * math.log(16), abs=1e-4)


def rows(first: int, count: int) -> Tensor:
    """Keys that can be told apart: number n is the n-th direction of a circle, at length n + 1."""
    angle = 0.1 * torch.arange(first, first + count)
    return torch.stack([angle.cos(), angle.sin()], 1) * (1 + torch.arange(first, first + count))[:, None]


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 3, 3, 3], [5], [7], [12, 1], [1, 13, 4], [10, 10, 3]])
def test_the_queue_holds_the_last_keys_in_the_places_where_they_fell_due(sizes: list[int]) -> None:
    queue = KeyQueue(5, 2)
    expected, place, first = queue.keys.clone(), 0, 0
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(5))
    for count in sizes:
        queue.enqueue(rows(first, count))
        for key in F.normalize(rows(first, count), dim=1):
            expected[place % 5] = key
            place += 1
        first += count
        torch.testing.assert_close(queue.keys, expected)
        assert int(queue.pointer) == place % 5


def test_a_queue_is_drawn_from_the_seeded_generator_and_never_empty() -> None:
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(KeyQueue(4, 3).keys)
    first, same, other = drawn
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    with pytest.raises(UserError, match=r"^objective\.queue_size=0"):
        KeyQueue(0, 3)


class LinearBackbone(Backbone):
    """No BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class NormedBackbone(Backbone):
    """A convolution and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features.mean((2, 3))


def moco(backbone: type[Backbone] = LinearBackbone, symmetric: bool = False, bn_splits: int = 1) -> MoCo:
    torch.manual_seed(0)
    objective = MoCo(backbone(), 2, 4, 0.2, 0.9, 12, symmetric, bn_splits).double()
    objective.queue.keys = F.normalize(objective.queue.keys, dim=1)  # float32 rows have length 1 up to 1e-7
    return objective


def moco_v3(backbone: type[Backbone] = LinearBackbone) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(backbone(), 2, 8, 4, False, 0.5, 0.9, False).double()


def moco_v3_without_norms() -> MoCoV3:
    """BatchNorm over the global batch is sync_batchnorm's affair."""
    torch.manual_seed(0)
    objective = moco_v3()
    objective.projector, objective.predictor = nn.Linear(6, 4).double(), nn.Linear(4, 4).double()
    objective.momentum_projector = ema.frozen_copy(objective.projector)
    return objective


def make_batch(where: slice = slice(0, 8), step: int = 0) -> Batch:
    views = draw(2, 8, 3, 4, 4, seed=10 + step)
    ids = torch.arange(8)[where]
    x1, x2 = (view[where].contiguous(memory_format=torch.channels_last) for view in views)
    return Batch(torch.zeros(len(ids), 3, 4, 4, dtype=torch.uint8), ids, ids, (x1, x2))


def train(objective: Objective, steps: range, where: slice = slice(0, 8)) -> list[float]:
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for step in steps:
        output = objective(make_batch(where, step), Progress(step, 10, 5, 3))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    return losses


def test_the_keys_come_from_the_average_with_the_weights_before_the_step_and_enter_the_queue_after_the_logits() -> None:
    objective = moco()
    for step in range(3):
        batch, before = make_batch(step=step), copy.deepcopy(objective)
        key_encoder = nn.Sequential(before.momentum_backbone, before.momentum_projector)
        online = nn.Sequential(before.backbone, before.projector)
        with torch.no_grad():
            for theirs, ours in zip(key_encoder.parameters(), online.parameters(), strict=True):
                theirs.copy_(0.9 * theirs + 0.1 * ours)
            keys = key_encoder(batch.views[1])
        expected = literal_queue_contrast(online(batch.views[0]), keys, before.queue.keys, 0.2)
        assert train(objective, range(step, step + 1)) == pytest.approx([float(expected.detach())], abs=1e-12)
        place = int(before.queue.pointer)
        written = objective.queue.keys[(place + torch.arange(8)) % 12]
        torch.testing.assert_close(written, F.normalize(keys, dim=1), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            [*objective.momentum_backbone.parameters(), *objective.momentum_projector.parameters()],
            list(key_encoder.parameters()),
            rtol=0,
            atol=1e-12,
        )


def test_the_symmetric_form_adds_both_directions_and_enqueues_the_keys_of_view_one_and_then_two() -> None:
    objective, before = moco(symmetric=True), moco(symmetric=True)
    x1, x2 = make_batch().views
    encode = nn.Sequential(before.backbone, before.projector)
    encode_key = copy.deepcopy(encode)
    keys = [encode_key(x).detach() for x in (x1, x2)]
    queue = before.queue.keys
    expected = literal_queue_contrast(encode(x1), keys[1], queue, 0.2)
    expected = expected + literal_queue_contrast(encode(x2), keys[0], queue, 0.2)
    assert train(objective, range(1)) == pytest.approx([float(expected.detach())], abs=1e-12)
    newest = objective.queue.keys[(4 + torch.arange(12)) % 12]  # 16 keys went through 12 places
    torch.testing.assert_close(newest, F.normalize(torch.cat(keys)[4:], dim=1), rtol=0, atol=1e-12)
    assert objective.collapsed_at(PLAN) == pytest.approx(2 * math.log(13))
    assert moco().collapsed_at(PLAN) == pytest.approx(math.log(13))


def test_version_3_predicts_both_views_with_an_average_whose_momentum_follows_a_cosine() -> None:
    objective = moco_v3()
    for step in range(3):
        batch, before = make_batch(step=step), copy.deepcopy(objective)
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        online = nn.Sequential(before.backbone, before.projector)
        key_encoder = nn.Sequential(before.momentum_backbone, before.momentum_projector)
        with torch.no_grad():
            for theirs, ours in zip(key_encoder.parameters(), online.parameters(), strict=True):
                theirs.copy_(momentum * theirs + (1 - momentum) * ours)
            k1, k2 = (key_encoder(x) for x in batch.views)
        q1, q2 = (before.predictor(online(x)) for x in batch.views)
        expected = literal_batch_contrast(q1, q2, k1, k2, 0.5).detach()
        assert train(objective, range(step, step + 1)) == pytest.approx([float(expected)], abs=1e-12)
    assert objective.collapsed_at(PLAN) == pytest.approx(2 * 2 * 0.5 * math.log(8))


@pytest.mark.parametrize("make", [lambda: moco(NormedBackbone, bn_splits=2), lambda: moco_v3(NormedBackbone)])
def test_no_gradient_reaches_the_key_encoder_and_its_batchnorm_statistics_are_its_own(
    make: Callable[[], MoCo | MoCoV3],
) -> None:
    objective = make()
    train(objective, range(2))
    output = objective(make_batch(step=2), Progress(2, 10, 5, 3))
    output.loss.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("momentum_"), name
    assert not output.features.requires_grad
    state = objective.state_dict()
    ours, theirs = state["backbone.layers.1.running_mean"], state["momentum_backbone.layers.1.running_mean"]
    assert float(theirs.abs().max()) > 1e-3  # it saw batches in training mode
    assert float((ours - theirs).abs().max()) > 1e-3  # other ones


def test_evaluation_mode_changes_neither_queue_nor_average() -> None:
    for objective in (moco(NormedBackbone, bn_splits=2), moco_v3(NormedBackbone)):
        objective.train()
        train(objective, range(1))
        objective.eval()
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        objective(make_batch(step=1), Progress(1, 10, 5, 3))
        assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("make", [lambda: moco(NormedBackbone, True, 2), lambda: moco_v3(NormedBackbone)])
def test_a_run_saved_and_loaded_goes_on_bit_for_bit(make: Callable[[], MoCo | MoCoV3]) -> None:
    straight = make()
    expected = train(straight, range(5))
    stopped = make()
    assert train(stopped, range(2)) == expected[:2]
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    fresh = make()
    train(fresh, range(7, 9))  # other weights, other queue: everything must come from the file
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert train(fresh, range(2, 5)) == expected[2:]
    final = straight.state_dict()
    assert all(torch.equal(value, final[name]) for name, value in fresh.state_dict().items())


def permutation_of(seed: int) -> Tensor:
    return torch.randperm(8, generator=torch.Generator().manual_seed(seed))


def test_shuffled_parts_have_their_own_statistics_and_return_in_order() -> None:
    images = draw(8, 2)

    def encode(part: Tensor) -> Tensor:
        return torch.cat([half - half.mean(0) for half in part.chunk(2)])

    ours = encode_shuffled(encode, images, 5)
    for half in permutation_of(5).chunk(2):
        torch.testing.assert_close(ours[half], images[half] - images[half].mean(0), rtol=0, atol=1e-12)


def test_keys_are_shuffled_anew_at_each_step_and_for_each_seed_and_queries_are_not() -> None:
    objective = moco(NormedBackbone, bn_splits=2)
    x = make_batch().views[1]
    batch, keys = make_batch(), []
    for step, seed in ((0, 3), (0, 3), (1, 3), (0, 4)):
        targets = copy.deepcopy(objective)(batch, Progress(step, 10, 5, seed)).targets
        assert targets is not None
        keys.append(targets)
    assert torch.equal(keys[0], keys[1])
    assert min(float((keys[0] - other).abs().max()) for other in keys[2:]) > 1e-3
    unshuffled = objective.momentum_projector(objective.momentum_backbone(x))
    assert float((keys[0] - unshuffled).abs().max()) > 1e-3
    plain, features = NormedBackbone().double(), objective.backbone(x)
    plain.load_state_dict(objective.backbone.state_dict())
    torch.testing.assert_close(features, torch.cat([plain(x[:4]), plain(x[4:])]), rtol=0, atol=1e-12)


CASES: dict[str, Callable[[], MoCo | MoCoV3]] = {
    "queue": moco,
    "symmetric": lambda: moco(symmetric=True),
    "shuffled batchnorm": lambda: moco(NormedBackbone, True, 4),
    "version 3": moco_v3_without_norms,
}


def after_three_steps(name: str, where: slice, average: Callable[[Tensor], None]) -> dict[str, Tensor]:
    """Losses, gradients of the third step and the queue, with the optimizer in between."""
    objective, losses = CASES[name](), []
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5)
    for step in range(3):
        output = objective(make_batch(where, step), Progress(step, 10, 5, 3))
        optimizer.zero_grad()
        output.loss.backward()
        losses.append(output.loss.detach())
        for value in (losses[-1], *(p.grad for p in objective.parameters() if p.grad is not None)):
            average(value)
        optimizer.step()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    queue = {key: value for key, value in objective.state_dict().items() if key.startswith("queue.")}
    return {"losses": torch.stack(losses), **gradients, **queue}


def mean_of_two(value: Tensor) -> None:
    torch.distributed.all_reduce(value)
    value /= 2


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    where = slice(4 * rank, 4 * rank + 4)
    results: dict[str, Any] = {name: after_three_steps(name, where, mean_of_two) for name in CASES}
    images = torch.arange(8.0)[:, None]
    seen: list[float] = []

    def encode(part: Tensor) -> Tensor:
        seen.extend(part.flatten().tolist())
        return 10 * part

    results["shuffled"] = encode_shuffled(encode, images[where], 5).flatten().tolist(), seen
    torch.save(results, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    spawn(one_of_two, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_every_gradient_and_the_queue_of_one(
    two_processes: list[dict[str, Any]], name: str
) -> None:
    one = after_three_steps(name, slice(0, 8), lambda value: None)
    assert len(one) >= 8
    for two in two_processes:
        assert two[name].keys() == one.keys()
        for key, expected in one.items():
            torch.testing.assert_close(two[name][key], expected, rtol=0, atol=1e-10, msg=key)


def test_on_two_processes_each_encodes_its_share_of_the_permutation_and_gets_its_own_keys_back_in_order(
    two_processes: list[dict[str, Any]],
) -> None:
    first, second = permutation_of(5).float().chunk(2)
    assert two_processes[0]["shuffled"] == ([0.0, 10.0, 20.0, 30.0], first.tolist())
    assert two_processes[1]["shuffled"] == ([40.0, 50.0, 60.0, 70.0], second.tolist())


def shapes(head: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in head.state_dict().items() if value.ndim}


def test_heads_have_the_layers_of_the_official_code() -> None:
    assert shapes(moco_projector(2048, 1, 128)) == {"0.weight": (128, 2048), "0.bias": (128,)}
    linear = {"0.weight": (2048, 2048), "0.bias": (2048,), "2.weight": (128, 2048), "2.bias": (128,)}
    assert shapes(moco_projector(2048, 2, 128)) == linear
    hidden = {f"1.{name}": (4096,) for name in ("weight", "bias", "running_mean", "running_var")}
    last = {"4.running_mean": (256,), "4.running_var": (256,)}  # no scale, no bias
    resnet = {"0.weight": (4096, 2048), **hidden, "3.weight": (256, 4096)}
    with torch.device("meta"):
        assert shapes(moco_v3_head([2048, 4096, 256], last_norm=True)) == {**resnet, **last}
        assert shapes(moco_v3_head([2048, 4096, 256], last_norm=False)) == resnet
        vit = moco_v3_head([384, 4096, 4096, 256], last_norm=True)
    assert [type(module).__name__ for module in vit] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + [
        "Linear",
        "BatchNorm1d",
    ]


class Freezable(LinearBackbone):
    def freeze_patch_projection(self) -> None:
        self.layers[1].requires_grad_(False)


def test_a_frozen_patch_projection_stays_the_same_in_both_encoders_bit_for_bit() -> None:
    objective = MoCoV3(Freezable(), 2, 8, 4, True, 0.5, 0.9, True)
    before = objective.backbone.state_dict()["layers.1.weight"].clone()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5)
    for step in range(2):
        views = [view.float() for view in make_batch(step=step).views]
        objective(make_batch()._replace(views=tuple(views)), Progress(step, 10, 5, 0)).loss.backward()
        optimizer.step()
    state = objective.state_dict()
    assert torch.equal(state["backbone.layers.1.weight"], before)
    assert torch.equal(state["momentum_backbone.layers.1.weight"], before)
    assert not torch.equal(state["backbone.layers.3.weight"], state["momentum_backbone.layers.3.weight"])


def test_what_cannot_work_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^objective\.freeze_patch_projection=true: LinearBackbone has no"):
        MoCoV3(LinearBackbone(), 2, 8, 4, False, 1.0, 0.99, True)
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        MoCoV3(LinearBackbone(), 0, 8, 4, False, 1.0, 0.99, False)
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        MoCo(LinearBackbone(), 0, 4, 0.2, 0.9, 12, False, 1)
    with pytest.raises(UserError, match=r"^objective\.momentum=1\.5"):
        MoCo(LinearBackbone(), 1, 4, 0.2, 1.5, 12, False, 1)
    with pytest.raises(UserError, match=r"^objective\.bn_splits=0"):
        MoCo(LinearBackbone(), 1, 4, 0.2, 0.9, 12, False, 0)
    with pytest.raises(UserError, match=r"^objective\.bn_splits=2: the backbone has no BatchNorm"):
        moco(bn_splits=2)
    plan = Plan(8, 1, 100, [4, 4])
    with pytest.raises(UserError, match=r"^batch_size=8: must be a multiple of objective\.bn_splits=3$"):
        moco(NormedBackbone, bn_splits=3).check(plan)
    with pytest.raises(UserError, match=r"^objective\.bn_splits=2: must be a multiple of the 4 processes$"):
        moco(NormedBackbone, bn_splits=2).check(plan._replace(processes=4))
    with pytest.raises(UserError, match=r"^objective\.queue_size=12: there are 11 training images"):
        moco().check(plan._replace(images=11))
    for objective in (moco(), moco_v3()):
        with pytest.raises(UserError, match=r"^views: these make 3 of an image, the objective takes exactly 2"):
            objective.check(plan._replace(views=[4, 4, 4]))
        objective.check(plan)
