"""SwAV against the paper and the official loop, closed forms, and itself on several processes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.forked import spawn
from tests.group import leave
from unlabeled import distributed
from unlabeled.distributed.fsdp import shard
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Plan, Progress
from unlabeled.objectives import swav
from unlabeled.objectives.parts import codes
from unlabeled.objectives.swav import FeatureQueue, SwAV, sinkhorn, swapped_prediction
from unlabeled.optimizers import LARS


def literal_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The official distributed_sinkhorn on one process, one row and one column at a time."""
    samples, prototypes = scores.shape
    q = torch.exp(scores / epsilon).T.clone()
    q /= q.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            q[k] = q[k] / q[k].sum() / prototypes
        for b in range(samples):
            q[:, b] = q[:, b] / q[:, b].sum() / samples
    return (q * samples).T


def literal_swapped_prediction(
    scores: list[Tensor], assigned: list[int], temperature: float, queue_scores: list[Tensor] | None
) -> Tensor:
    """The official loop: for each crop that gives a code, each other crop predicts it, sample by sample."""
    loss = scores[0].new_zeros(())
    for position, i in enumerate(assigned):
        joined = scores[i] if queue_scores is None else torch.cat([queue_scores[position], scores[i]])
        codes = literal_sinkhorn(joined.detach(), 0.05, 3)[-len(scores[i]) :]
        subloss = scores[0].new_zeros(())
        for v in range(len(scores)):
            if v == i:
                continue
            for b in range(len(codes)):
                p = torch.exp(scores[v][b] / temperature) / torch.exp(scores[v][b] / temperature).sum()
                subloss = subloss - (codes[b] * p.log()).sum() / len(codes)
        loss = loss + subloss / (len(scores) - 1)
    return loss / len(assigned)


def cosines(rows: int, prototypes: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(rows, prototypes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 4), (6, 3), (5, 16)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.03, 10), (0.5, 1)])
def test_codes_equal_the_official_loop(rows: int, prototypes: int, epsilon: float, iterations: int) -> None:
    scores = cosines(rows, prototypes)
    expected = literal_sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 3, 200])
def test_each_samples_code_sums_to_one(iterations: int) -> None:
    codes = sinkhorn(cosines(32, 8).float(), 0.1, iterations)
    torch.testing.assert_close(codes.sum(1), torch.ones(32), rtol=0, atol=1e-6)


def test_each_prototype_gets_an_equal_share_exactly_after_its_step_and_in_the_limit_after_both() -> None:
    scores = cosines(32, 8)
    shares = (scores / 0.1 - codes._log_total(scores / 0.1)).exp() * (32 / 8)
    torch.testing.assert_close(shares.sum(0), torch.full((8,), 32 / 8, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(shares / shares.sum(1, keepdim=True), sinkhorn(scores, 0.1, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(sinkhorn(scores, 0.1, 500).sum(0), shares.sum(0), rtol=0, atol=1e-6)


def test_codes_do_not_depend_on_a_constant_added_to_all_scores_or_to_a_prototype() -> None:
    scores = cosines(12, 5)
    expected = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(sinkhorn(scores + 7, 0.05, 3), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(sinkhorn(scores + cosines(1, 5, seed=1), 0.05, 3), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("size", "epsilon"), [(1.0, 1e-4), (1e4, 0.05), (1e4, 1e-3)])
def test_codes_of_huge_scores_and_of_a_small_epsilon_are_finite(
    dtype: torch.dtype, size: float, epsilon: float
) -> None:
    codes = sinkhorn((size * cosines(16, 12)).to(dtype), epsilon, 10)
    assert codes.dtype == torch.float32
    assert bool(codes.isfinite().all())
    torch.testing.assert_close(codes.sum(1), torch.ones(16), rtol=0, atol=1e-5)


def test_codes_carry_no_gradient_so_an_assigned_crop_learns_only_from_what_it_predicts() -> None:
    first, second = cosines(4, 3).requires_grad_(), cosines(4, 3, seed=1).requires_grad_()
    assert not sinkhorn(first, 0.05, 3).requires_grad
    loss = swapped_prediction([first, second], [0], 0.1, 0.05, 3)
    gradients = torch.autograd.grad(loss, [first, second], materialize_grads=True)
    assert [float(gradient.abs().max()) > 0 for gradient in gradients] == [False, True]


@pytest.mark.parametrize("queue", [0, 1, 7])
@pytest.mark.parametrize(("crops", "assigned"), [(2, [0, 1]), (5, [0, 1]), (4, [1]), (3, [0, 1, 2])])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_loss_and_its_gradients_equal_the_official_loop(
    crops: int, assigned: list[int], queue: int, temperature: float
) -> None:
    scores = [cosines(6, 5, seed=crop).requires_grad_() for crop in range(crops)]
    queue_scores = [cosines(queue, 5, seed=10 + crop) for crop in assigned] if queue else None
    loss = swapped_prediction(scores, assigned, temperature, 0.05, 3, queue_scores)
    expected = literal_swapped_prediction(scores, assigned, temperature, queue_scores)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(loss, scores, materialize_grads=True)  # a crop that alone gives codes has none
    theirs = torch.autograd.grad(expected, scores, materialize_grads=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prototypes", [2, 100, 3000])
def test_equal_scores_give_the_log_of_the_number_of_prototypes(prototypes: int) -> None:
    scores = [torch.full((8, prototypes), 0.3)] * 3
    assert float(swapped_prediction(scores, [0, 1], 0.1, 0.05, 3)) == pytest.approx(math.log(prototypes), abs=1e-5)


def test_one_prototype_per_sample_gives_the_closed_form() -> None:
    scores = [torch.eye(6, dtype=torch.float64)] * 2  # with ε = 0.001 the code of sample i is prototype i
    expected = math.log(math.exp(1 / 0.2) + 5) - 1 / 0.2
    assert float(swapped_prediction(scores, [0, 1], 0.2, 0.001, 3)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_loss_is_float32_and_that_of_the_lifted_scores(dtype: torch.dtype) -> None:
    scores = [cosines(16, 32, seed=crop).to(dtype) for crop in range(3)]
    queue = [cosines(8, 32, seed=5).to(dtype)] * 2
    with torch.autocast("cpu", dtype=dtype):
        loss = swapped_prediction(scores, [0, 1], 0.1, 0.03, 10, queue)
    expected = swapped_prediction([s.float() for s in scores], [0, 1], 0.1, 0.03, 10, [q.float() for q in queue])
    assert loss.dtype == torch.float32
    assert float(loss) == float(expected)


class LinearBackbone(Backbone):
    """No BatchNorm: what two processes compute of it is what one computes. Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images.mean((2, 3)))
        return features


def make_objective(freeze: float = 0, queue_length: int = 10, queue_from_epoch: float = 0) -> SwAV:
    torch.manual_seed(0)
    objective = SwAV(
        LinearBackbone(),
        projection_hidden=[7],
        projection_dim=4,
        projection_batch_norm=False,
        prototypes=5,
        assigned=[0, 1],
        temperature=0.1,
        epsilon=0.05,
        iterations=3,
        freeze_prototypes_epochs=freeze,
        queue_length=queue_length,
        queue_from_epoch=queue_from_epoch,
    )
    return objective.double()


def make_batch(step: int, rows: slice = slice(0, 8)) -> Batch:
    """Two crops of 4 pixels and three of 2, as small and large crops of eight images."""
    generator = torch.Generator().manual_seed(step)
    sizes = (4, 4, 2, 2, 2)
    views = tuple(torch.randn(8, 3, size, size, dtype=torch.float64, generator=generator)[rows] for size in sizes)
    ids = torch.arange(8)[rows]
    return Batch(torch.zeros(len(ids), 3, 4, 4, dtype=torch.uint8), ids, ids, views)


def progress_at(step: int) -> Progress:
    return Progress(step, 40, 10, 0)


def train(objective: SwAV, steps: range, rows: slice = slice(0, 8)) -> dict[str, Tensor]:
    """Steps of SGD with momentum and decay as the training loop takes them; gradients averaged as DDP does."""
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    kept = {}
    for step in steps:
        output = objective(make_batch(step, rows), progress_at(step))
        optimizer.zero_grad()
        output.loss.backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None
            parameter.grad = distributed.total(parameter.grad) / distributed.world_size()
            kept[f"step {step} gradient of {name}"] = parameter.grad.clone()
        kept[f"step {step} loss"] = distributed.total(output.loss.detach()) / distributed.world_size()
        objective.after_backward(progress_at(step))
        optimizer.step()
        objective.after_step(progress_at(step))
    return kept | {f"state {name}": value.clone() for name, value in objective.state_dict().items()}


def all_of_it(rows: slice) -> dict[str, Tensor]:
    """Codes of a batch, and five steps: the queue of 10 rows is full after two of 8 images and used from the third."""
    codes = distributed.gather(sinkhorn(cosines(8, 5)[rows], 0.05, 3))
    return {"codes": codes} | train(make_objective(), range(5), rows)


def one_of_several(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=processes)
    local = 8 // processes
    rows = slice(local * rank, local * (rank + 1))
    torch.save({"whole": all_of_it(rows), "pieces": train_in_pieces(rows)}, f"{folder}/{rank}.pt")
    leave()


def train_in_pieces(rows: slice) -> dict[str, Tensor]:
    """Five steps with LARS, the prototypes frozen in the first; on several processes each holds a piece (FSDP2)."""
    objective = make_objective(freeze=0.1)
    if distributed.world_size() > 1:
        shard(objective, init_device_mesh("cpu", (distributed.world_size(),)))
    optimizer = LARS(objective.parameters(), lr=1.0, weight_decay=0.01, trust_coefficient=0.1)
    for step in range(5):
        optimizer.zero_grad()
        objective(make_batch(step, rows), progress_at(step)).loss.backward()
        objective.after_backward(progress_at(step))
        optimizer.step()
        objective.after_step(progress_at(step))
    state = objective.state_dict()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_have_the_codes_losses_gradients_weights_and_queue_of_one(
    tmp_path: Path, processes: int
) -> None:
    spawn(one_of_several, (processes, str(tmp_path)), processes)
    one = all_of_it(slice(0, 8))
    assert int(one["state queue.filled"]) == 10
    assert len([name for name in one if "gradient" in name]) == 5 * (4 + 4 + 1)
    for rank in range(processes):
        several = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(several["whole"], one, rtol=0, atol=1e-10)
        torch.testing.assert_close(several["pieces"], train_in_pieces(slice(0, 8)), rtol=0, atol=1e-10)


def norms(objective: SwAV) -> Tensor:
    lengths: Tensor = objective.prototypes.weight.detach().norm(dim=1)
    return lengths


def test_prototypes_have_length_one_in_every_forward_and_are_plain_weights_to_the_optimizer() -> None:
    objective = make_objective()
    lengths: list[Tensor] = [norms(objective)]
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for step in range(3):
        objective(make_batch(step), progress_at(step)).loss.backward()
        before, gradient = objective.prototypes.weight.detach().clone(), objective.prototypes.weight.grad
        optimizer.step()
        assert float((norms(objective) - 1).abs().max()) > 1e-4
        objective.after_step(progress_at(step))
        assert gradient is not None
        expected = nn.functional.normalize(before - 0.1 * gradient)
        torch.testing.assert_close(objective.prototypes.weight.detach(), expected, rtol=0, atol=1e-12)
        lengths.append(norms(objective))
    torch.testing.assert_close(torch.stack(lengths), torch.ones(4, 5, dtype=torch.float64), rtol=0, atol=1e-7)


def test_prototypes_stay_for_the_frozen_epochs_under_momentum_and_decay_and_move_in_the_step_after() -> None:
    objective = make_objective(freeze=0.3)  # 3 of 10 steps
    drawn = objective.prototypes.weight.detach().clone()
    backbone = objective.backbone.state_dict()["layers.0.weight"].clone()
    train(objective, range(3))
    assert torch.equal(objective.prototypes.weight, drawn)
    assert objective.prototypes.weight.grad is None
    assert float((objective.backbone.state_dict()["layers.0.weight"] - backbone).abs().max()) > 1e-3
    train(objective, range(3, 4))
    assert float((objective.prototypes.weight.detach() - drawn).abs().max()) > 1e-3


def test_one_forward_per_resolution_and_one_of_the_projector_over_all_crops_in_their_order() -> None:
    objective = make_objective()
    seen: list[tuple[int, ...]] = []
    objective.backbone.register_forward_hook(lambda module, given, made: seen.append(tuple(given[0].shape)))
    objective.projector.register_forward_hook(lambda module, given, made: seen.append(tuple(given[0].shape)))
    output = objective(make_batch(0), progress_at(0))
    assert seen == [(16, 3, 4, 4), (24, 3, 2, 2), (40, 6)]
    torch.testing.assert_close(output.features, objective.backbone(make_batch(0).views[0]))
    assert not output.features.requires_grad


def test_the_objectives_loss_is_that_of_its_parts() -> None:
    objective = make_objective(queue_length=0)
    batch = make_batch(0)
    loss = objective(batch, progress_at(0)).loss
    prototypes = objective.prototypes.weight
    embedded = [nn.functional.normalize(objective.projector(objective.backbone(view))) for view in batch.views]
    expected = literal_swapped_prediction([z @ prototypes.T for z in embedded], [0, 1], 0.1, None)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def test_the_queue_is_first_in_first_out_with_the_newest_in_front_for_any_batch_size() -> None:
    queue = FeatureQueue(crops=2, length=5, dim=1)
    rows = torch.arange(12.0).reshape(1, 12, 1)
    for start, end, full in [(0, 2, False), (2, 4, False), (4, 6, True), (6, 12, True)]:
        queue.enqueue(torch.cat([rows, -rows])[:, start:end])
        assert queue.is_full is full
        if end == 4:
            assert queue.embeddings[0, :, 0].tolist() == [2, 3, 0, 1, 0]
        if end == 6:
            assert queue.embeddings[:, :, 0].tolist() == [[4, 5, 2, 3, 0], [-4, -5, -2, -3, 0]]
    assert queue.embeddings[0, :, 0].tolist() == [6, 7, 8, 9, 10]


def test_the_queue_is_used_once_full_after_its_epoch_and_never_holds_the_batch_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = make_objective(queue_length=16, queue_from_epoch=0.2)  # from step 2; full after steps 2 and 3
    used: list[Tensor | None] = []
    real = swav.compute_codes

    def spy(scores: list[Tensor], *settings: object) -> list[Tensor]:
        queued: list[Tensor] | None = settings[-1]  # type: ignore[assignment]
        used.append(None if queued is None else torch.stack(queued))
        return real(scores, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(swav, "compute_codes", spy)
    embedded = []  # of the two large crops of each step; nothing is trained, so they can be compared later
    for step in range(6):
        batch = make_batch(step)
        output = objective(batch, progress_at(step))
        projected = [objective.projector(objective.backbone(view)) for view in batch.views[:2]]
        embedded.append(nn.functional.normalize(torch.stack(projected), dim=2).detach())
        assert float(output.metrics["queue_in_use"]) == float(step >= 4)
    assert used[:4] == [None] * 4
    for step in (4, 5):
        expected = torch.cat([embedded[step - 1], embedded[step - 2]], 1) @ objective.prototypes.weight.detach().T
        found = used[step]
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_device_is_asked_whether_the_queue_is_full_until_a_step_began_with_a_full_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[bool] = []
    is_full = swav.FeatureQueue.is_full.fget  # type: ignore[attr-defined]

    def asked(queue: FeatureQueue) -> bool:
        answers.append(is_full(queue))
        return answers[-1]

    monkeypatch.setattr(swav.FeatureQueue, "is_full", property(asked))
    objective = make_objective(queue_length=8)
    for step in range(3):
        for part in range(2):  # full after the first of them; within a step nothing is remembered, it may be taken back
            objective(make_batch(step), progress_at(step)._replace(part=part, parts=2))
            assert objective.was_full == (step > 0)
    assert answers == [False, True, True]
    empty = make_objective(queue_length=8).state_dict()
    objective.load_state_dict(empty)
    assert float(objective(make_batch(3), progress_at(3)).metrics["queue_in_use"]) == 0


def test_evaluation_does_not_touch_the_queue() -> None:
    objective = make_objective()
    train(objective, range(2))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.eval()(make_batch(9), progress_at(9))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = make_objective(freeze=0.2)
    train(straight, range(3))
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    expected = train(straight, range(3, 6))
    resumed = make_objective(freeze=0.2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = train(resumed, range(3, 6))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_scores_and_queue_are_float32_and_a_step_is_finite(dtype: torch.dtype) -> None:
    objective = make_objective(queue_length=8).float()
    for step in range(2):
        batch = make_batch(step)
        batch = batch._replace(views=tuple(view.float() for view in batch.views))
        with torch.autocast("cpu", dtype=dtype):
            output = objective(batch, progress_at(step))
        assert output.loss.dtype == torch.float32
        output.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)
    assert objective.queue is not None
    lengths = objective.queue.embeddings.norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones(2, 8), rtol=0, atol=1e-6)  # 16 bits would be off by a thousandth


def test_the_value_at_collapse_is_the_log_of_the_number_of_prototypes() -> None:
    assert make_objective().collapsed_at(Plan(8, 1, 8, (4, 4))) == math.log(5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"assigned": []}, "objective.assigned=[]: give at least one view by its number, each once, from 0"),
        ({"assigned": [0, 0]}, "objective.assigned=[0, 0]: give at least one view by its number, each once, from 0"),
        ({"iterations": 0}, "objective.epsilon=0.05 must be above 0, objective.iterations=0 at least 1"),
        ({"epsilon": 0.0}, "objective.epsilon=0.0 must be above 0, objective.iterations=3 at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(changed: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"assigned": [0, 1], "epsilon": 0.05, "iterations": 3}
    with pytest.raises(UserError) as caught:
        swav._check_settings(**(given | changed))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_queue_longer_than_an_epoch_and_a_missing_view_are_refused_before_data_is_read() -> None:
    with pytest.raises(UserError, match=r"^objective\.queue_length=81 is longer than an epoch of 80 images$"):
        make_objective(queue_length=81).check(Plan(8, 1, 87, [4, 4]))  # ten batches, and seven images left over
    with pytest.raises(UserError, match=r"^views: these make 1 of an image, the objective takes at least 2: give"):
        make_objective().check(Plan(8, 1, 80, [4]))
    make_objective(queue_length=80).check(Plan(8, 1, 87, [4, 4]))
