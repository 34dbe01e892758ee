"""Nothing in a step waits for the device, as far as a machine without a GPU can tell."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.small import members, small_objective, with_companions
from unlabeled.data.support import NeedsSupport
from unlabeled.objective import AfterBackward, Batch, Objective, Progress, Support, WritesTrained
from unlabeled.optimizers import LARS
from unlabeled.training.faults import deferred
from unlabeled.training.faults.deferred import DeferredVerdicts
from unlabeled.training.faults.snapshot import Snapshot
from unlabeled.views.key import ViewKey
from unlabeled.views.padded_crop import RandomCrop
from unlabeled.views.pipeline import Views

BATCH, SUPPORT = 16, 4  # more than the ten negatives of ReLICv2, a multiple of the eight splits of MoCo
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}
READS |= {"aten::_unique2", "aten::bincount", "aten::repeat_interleave.Tensor", "aten::lift_fresh"}


class Never(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what makes the host wait for tensors that are on a device: here ``meta``, which has no values to read.

    Those are reading a value, shapes that depend on values, copies that block, and tensors made of Python's numbers.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, tensors = function._schema.name, [each for each in pytree.tree_leaves(args) if isinstance(each, Tensor)]
        there = any(each.is_meta for each in tensors)
        assert not (there and name in READS), f"{function} reads from the device"
        if name == "aten::_to_copy" and torch.device(kwargs.get("device") or tensors[0].device) != tensors[0].device:
            assert kwargs.get("non_blocking"), f"{function} of {list(tensors[0].shape)} blocks"
        if name == "aten::copy_" and tensors[0].device != tensors[-1].device:
            assert kwargs.get("non_blocking") or (len(args) > 2 and args[2]), f"{function} blocks"
        if name in ("aten::index", "aten::index_put_"):
            chosen = [each for each in args[1] if each is not None]
            assert not (there and any(each.dtype in (torch.bool, torch.uint8) for each in chosen)), "a mask as index"
        return None if there and name == "aten::_fused_sgd_" else function(*args, **kwargs)  # it has no meta form


def step(objective: Objective, views: Views, device: torch.device) -> None:
    """All that a step does on the device, in its order, without Lightning."""
    key, ids = ViewKey(0, 3, 0, BATCH), torch.arange(BATCH, device=device)
    images = torch.empty(BATCH, 3, 20, 24, dtype=torch.uint8, device=device)
    support = None
    if isinstance(objective, NeedsSupport):
        slots = torch.arange(2, device=device).repeat(SUPPORT // 2)
        some = tuple(views(images[:SUPPORT], ids[:SUPPORT], key, first=objective.support.views))
        support = Support(images[:SUPPORT], ids[:SUPPORT], slots, some, labels=slots)
    padded = not any(isinstance(each, RandomCrop) for group in views.groups for each in group.operations)
    sizes = torch.full((BATCH, 2), 18, device=device) if padded else None  # a RandomCrop takes images of one size
    batch = with_companions(objective, Batch(images, ids, ids, views(images, ids, key, sizes=sizes), support))
    progress = Progress(12, 100, 10, 0)
    optimizer = LARS([each for each in objective.parameters() if each.requires_grad], 0.1, weight_decay=0.1)
    verdicts = DeferredVerdicts(objective, optimizer)
    snapshot = Snapshot(objective, objective.written_after_step() if isinstance(objective, WritesTrained) else ())
    snapshot.keep()
    output = objective(batch, progress)
    output.loss.backward()
    if isinstance(objective, AfterBackward):
        objective.after_backward(progress)
    verdicts.judge(output.loss.detach(), [each.grad for each in objective.parameters() if each.grad is not None])
    optimizer.step()
    objective.after_step(progress)
    verdicts.end_step(progress.step, [batch], snapshot)


def small(name: str) -> tuple[Objective, Views]:
    config, objective = small_objective(name)
    return objective, instantiate(config.views)


@pytest.mark.parametrize("name", members("objective"))
def test_no_step_of_an_objective_reads_from_the_device_or_blocks_on_a_copy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # it knows no such device
    monkeypatch.setattr(deferred, "_OnItsWay", lambda flag: None)  # there is no flag to send
    objective, views = small(name)
    objective.to("meta")
    with Never():  # type: ignore[no-untyped-call]
        step(objective, views, torch.device("meta"))


old = pytest.mark.skipif(torch.__version__ < "2.15", reason="older ones make such a tensor unseen")
number = pytest.param("torch.tensor(1.0, device='meta')", marks=old)


@pytest.mark.parametrize("wait", ["float(x.sum())", "x[x > 0]", number, "drawn.to('meta')"])
def test_a_wait_would_be_noticed(wait: str) -> None:
    known = {"torch": torch, "x": torch.empty(3, device="meta"), "drawn": torch.zeros(3)}
    with Never(), pytest.raises(AssertionError):  # type: ignore[no-untyped-call]
        eval(wait, known)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", members("objective"))
def test_no_step_of_an_objective_synchronises_with_a_gpu(name: str) -> None:
    objective, views = small(name)
    views.compiles = False  # of many pipelines it would take minutes
    device = torch.device("cuda")
    objective.to(device)
    step(objective, views, device)  # libraries are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(objective, views, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
