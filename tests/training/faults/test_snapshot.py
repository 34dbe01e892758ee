"""What a forward wrote is put back."""

import torch
from torch import Tensor, nn

from unlabeled.training.faults.snapshot import Snapshot


class Restless(nn.Module):
    """Writes to what it holds in every way that a method may."""

    counter: Tensor
    centre: Tensor
    late: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(3, 2)
        self.momentum = nn.Linear(3, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))
        self.register_buffer("centre", torch.tensor([-0.0, 1e-45, torch.inf, 7.0]))
        self.register_buffer("late", None)
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.norm(rows)
        self.counter += 1  # in place
        self.centre = self.centre * 2 + 1  # another tensor
        self.late = torch.ones(5)  # where there was none
        self.get_buffer("scratch").add_(1)
        self.momentum.weight.data = self.momentum.weight.data * 0.5  # another storage
        with torch.no_grad():
            self.momentum.bias.add_(1)
        return rows


def bytes_of(network: nn.Module) -> dict[str, bytes]:
    tensors = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def test_buffers_and_frozen_parameters_are_put_back_bit_for_bit_however_they_were_changed() -> None:
    network = Restless()
    network(torch.randn(8, 3))
    network.late = None
    snapshot = Snapshot(network)
    for _ in range(2):  # the memory of the copy is used again
        before = bytes_of(network)
        snapshot.keep()
        network(torch.randn(8, 3))
        changed = [name for name, value in bytes_of(network).items() if before.get(name) != value]
        assert len(changed) == 9, changed  # BatchNorm's three, two of the momentum network, four buffers
        snapshot.restore()
        assert bytes_of(network) == before
        assert network.late is None
        network(torch.randn(8, 3))  # a step that counts
        network.late = None


def test_a_tensor_that_has_grown_since_the_last_step_is_kept_whole() -> None:
    network = Restless()
    snapshot = Snapshot(network)
    snapshot.keep()
    network.centre = torch.arange(9.0)
    snapshot.keep()
    network(torch.randn(8, 3))
    snapshot.restore()
    assert network.centre.tolist() == list(range(9))


def test_trained_parameters_are_neither_copied_nor_touched() -> None:
    network = Restless()
    snapshot = Snapshot(network)
    snapshot.keep()
    with torch.no_grad():
        network.trained.weight.fill_(3.0)
    snapshot.restore()
    assert network.trained.weight.tolist() == [[3.0] * 3] * 2
    frozen = network.momentum.weight.numel() + network.momentum.bias.numel()
    buffers = sum(buffer.numel() for buffer in network.buffers())
    assert sum(copy.numel() for copy in snapshot._copies) == frozen + buffers
