"""What a step wrote is overwritten by a flag, bit for bit, whatever the values are."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.small import members, small_objective
from tests.training.faults.test_snapshot import Restless, bytes_of
from unlabeled.errors import UserError
from unlabeled.objective import Progress, WritesTrained
from unlabeled.objectives.swav import SwAV
from unlabeled.training.faults.deferred import StateBeforeFault
from unlabeled.training.faults.selection import Bits, overwrite
from unlabeled.training.faults.snapshot import Snapshot
from unlabeled.training.faults.verdict import not_finite

YES, NO = torch.ones(()), torch.zeros(())
STRANGE = [torch.nan, torch.inf, -torch.inf, -0.0, 1e-45, 3e38]


def some(seed: int) -> list[Tensor]:
    """Tensors of every kind and order in memory, with numbers that arithmetic would change."""
    generator = torch.Generator().manual_seed(seed)
    floats = torch.tensor([STRANGE[(number + seed) % 6] for number in range(12)])
    images = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
    whole = torch.randint(-(2**62), 2**62, (3, 2), generator=generator)
    few = torch.randint(0, 256, (7,), generator=generator, dtype=torch.uint8)
    wide = torch.randn(6, 4, generator=generator)[:, 1:3]  # with gaps in memory
    rest = [floats.bfloat16(), floats.half(), floats.double(), whole, whole[0, 0].clone(), whole.T, few, few > 100]
    return [floats, floats[seed].clone(), images, wide, *rest, torch.empty(0)]


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [each.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for each in tensors]


@pytest.mark.parametrize("flag", [YES, NO, YES.bool(), NO.bool()])
def test_tensors_of_every_kind_become_others_to_the_bit_if_the_flag_is_1_and_stay_if_it_is_0(flag: Tensor) -> None:
    into, values = some(0), some(1)
    wanted = bits(values if flag else into)
    overwrite(Bits().of(into), Bits().of(values), flag)
    assert bits(into) == wanted
    assert bits(values) == bits(some(1))


def test_views_are_made_once_and_anew_for_other_memory() -> None:
    tensors, seen = some(0), Bits()
    first = seen.of(tensors)
    assert seen.of(list(tensors)) is first
    tensors[0].data = tensors[0].clone()
    assert seen.of(tensors) is not first


@pytest.mark.parametrize("flag", [YES, NO])
def test_what_a_forward_wrote_is_put_back_however_it_was_changed(flag: Tensor) -> None:
    network = Restless()
    network.late = torch.zeros(5)
    snapshot = Snapshot(network)
    before = bytes_of(network)
    snapshot.keep()
    network(torch.randn(8, 3))
    after = bytes_of(network)
    snapshot.restore_if(flag)
    assert bytes_of(network) == (before if flag else after)


def test_a_buffer_that_has_grown_cannot_be_put_back_and_that_is_said() -> None:
    network = Restless()
    snapshot = Snapshot(network)
    snapshot.keep()
    network(torch.randn(8, 3))  # makes a tensor where there was none
    with pytest.raises(UserError, match="objective: a buffer has another shape"):
        snapshot.restore_if(NO)


def test_the_state_before_the_first_bad_step_is_kept_until_it_is_forgotten() -> None:
    _, objective = small_objective("moco_v2")
    states, kept = [], StateBeforeFault(objective)
    for flag in (NO, YES, NO, YES):
        states.append(bytes_of(objective))
        kept.keep_if(flag)
        with torch.no_grad():
            for each in (*objective.parameters(), *objective.buffers()):
                each.add_(1)
    now = bytes_of(objective)
    with kept.loaded():
        assert bytes_of(objective) == states[1]
    assert bytes_of(objective) == now
    kept.forget()
    kept.keep_if(YES)
    objective.zero_grad()
    with kept.loaded():
        assert bytes_of(objective) == now


def test_an_objective_is_told_of_another_state() -> None:
    """SwAV remembers that its queue was full; in the state before a bad step it may not have been."""
    _, objective = small_objective("swav")
    assert isinstance(objective, SwAV)
    kept = StateBeforeFault(objective)
    kept.keep_if(YES)
    objective.was_full = True
    with kept.loaded():
        assert not objective.was_full


@pytest.mark.parametrize("name", members("objective"))
def test_a_method_says_which_trained_parameters_it_writes_to_after_a_step(name: str) -> None:
    _, objective = small_objective(name)
    trained = {key: each for key, each in objective.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for each in trained.values():
            each.mul_(1.1)
    before = copy.deepcopy(trained)
    objective.after_step(Progress(90, 100, 10, 0))
    said = objective.written_after_step() if isinstance(objective, WritesTrained) else ()
    written = {key for key, each in trained.items() if not torch.equal(each, before[key])}
    assert written == {key for key, each in trained.items() if any(each is one for one in said)}


@pytest.mark.parametrize(
    ("loss", "gradient", "bad"),
    [
        (1.0, 3e38, 0.0),  # its length overflows, and it is finite
        (1.0, torch.nan, 1.0),
        (1.0, -torch.inf, 1.0),
        (torch.inf, 1.0, 1.0),
        (torch.nan, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_flag_says_exactly_whether_loss_or_gradients_are_not_finite_and_changes_neither(
    loss: float, gradient: float, bad: float, dtype: torch.dtype
) -> None:
    gradients = [torch.ones(3), torch.full((2, 3, 2, 2), gradient, dtype=dtype), torch.tensor(-0.0)]
    gradients[1] = gradients[1].to(memory_format=torch.channels_last)
    before = bits(gradients)
    found = not_finite(torch.tensor(loss, dtype=dtype), gradients)
    assert (float(found), found.dtype, found.shape) == (bad, torch.float32, ())
    assert bits(gradients) == before


class Frozen(nn.Module):
    """Shares nothing with a snapshot but a parameter that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 2)


def test_trained_parameters_are_put_back_only_if_they_were_named() -> None:
    network = Frozen()
    snapshot = Snapshot(network, [network.trained.bias])
    before = bytes_of(network)
    snapshot.keep()
    with torch.no_grad():
        for each in network.parameters():
            each.add_(1)
    snapshot.restore_if(YES)
    assert [name for name, value in bytes_of(network).items() if value != before[name]] == ["trained.weight"]
