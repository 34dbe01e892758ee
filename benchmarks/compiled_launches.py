"""How many kernels a GPU launches for compiled views, counted by inductor's own code for it on a machine without one.

The operations are traced on fake tensors, moved to ``cuda`` and lowered to Triton for an H100: inductor decides what it
fuses, and its text is counted. Nothing is compiled or run. Two passes that want a driver are left out (patterns of
attention, and what follows it), so the number on a GPU can differ by a few.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch._inductor.config as inductor
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from benchmarks.launches import composed
from unlabeled.views.at_once import make_views
from unlabeled.views.draw_ahead import DrawnGroup, draw
from unlabeled.views.key import ViewKey
from unlabeled.views.merged_groups import merge_groups
from unlabeled.views.pipeline import Views

H100 = types.SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    L2_cache_size=50 << 20,
    is_integrated=0,
)


@contextmanager
def pretended_gpu() -> Iterator[FakeTensorMode]:
    """Lets inductor write code for an H100 that is not there."""
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.runtime import driver  # type: ignore[import-untyped]

    driver.set_active(types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    answers: list[tuple[Any, str, Any]] = [
        (torch.cuda, "get_device_properties", H100),
        (torch.cuda, "get_device_capability", (9, 0)),
        (torch.cuda, "is_available", True),
        (torch.cuda, "current_device", 0),
        (torch.cuda, "device_count", 1),
        (scheduler, "has_triton", True),
        (CudaInterface, "get_device_properties", H100),
        (CudaInterface, "get_compute_capability", 90),
        (CudaInterface, "is_available", True),
        (CudaInterface.Worker, "get_device_properties", H100),
        (CudaInterface.Worker, "current_device", 0),
    ]
    with ExitStack() as stack:
        mode = stack.enter_context(
            FakeTensorMode(allow_non_fake_inputs=True)
        )  # first: later it would look for a driver
        for owner, name, answer in answers:
            stack.enter_context(mock.patch.object(owner, name, mock.Mock(return_value=answer)))
        stack.enter_context(inductor.patch(fx_graph_cache=False, compile_threads=1))
        stack.enter_context(torch.no_grad())
        yield mode
    driver._active = None


def kernels_of_views(config: DictConfig, batch: int, pixels: int) -> list[int]:
    """Returns for each group of views, joined as on a GPU, its kernels, with products, without the copy of the draws.

    Args:
        config: of ``conf/views``.
        batch: images.
        pixels: their height and width.
    """
    config.update({key: None for key in config if OmegaConf.is_missing(config, key)})
    views: Views = instantiate(config)
    images = torch.zeros(batch, views.channels, pixels, pixels, dtype=torch.uint8)
    counts = []
    for group in merge_groups(views._numbered(None)):
        drawn = draw([group], ViewKey(0, 0, 0, batch), batch, False).parameters(torch.device("cpu"))[0]
        kept = [place for place, step in enumerate(group.operations) if not getattr(step, "changes_nothing", False)]
        own = DrawnGroup([group.operations[place] for place in kept], group.views)
        counts.append(_kernels(own, images, [drawn[place] for place in kept], views._normal_of(images.device)))
    return counts


def _kernels(group: DrawnGroup, images: Tensor, drawn: Any, normal: Tensor | None) -> int:
    values, structure = pytree.tree_flatten((images, normal, drawn))
    given = [each for each in values if isinstance(each, Tensor)]

    def function(*tensors: Tensor) -> Tensor:
        left = iter(tensors)
        inputs = [next(left) if isinstance(each, Tensor) else each for each in values]
        own_images, own_normal, own_drawn = pytree.tree_unflatten(inputs, structure)
        return make_views(own_images, group.operations, own_drawn, len(group.views), own_normal, {})

    with pretended_gpu() as mode:
        here = [torch.empty(each.shape, dtype=each.dtype) for each in given]
        there = [torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in given]
        with mock.patch.object(torch.compiler, "is_compiling", mock.Mock(return_value=True)):
            pure = torch.func.functionalize(function, remove="mutations_and_views")
            traced = make_fx(pure, decomposition_table=select_decomp_table())(*here)
        for node in traced.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        traced.graph.eliminate_dead_code()
        traced.recompile()
        with V.set_fake_mode(mode):
            FakeTensorProp(traced, mode).propagate(*there)
            view_to_reshape(traced)  # type: ignore[no-untyped-call]
            FakeTensorProp(traced, mode).propagate(*there)
            graph = GraphLowering(traced, example_inputs=there, is_inference=True)
            with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
                graph.run(*there)
                text: Any = graph.codegen()[0]
    code = str(getattr(text, "value", text))
    return code.count(".run(") + code.count("extern_kernels.bmm(")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, kernels_of_views(composed(f"views={name}").views, 256, 40 if "small" in name else 256), flush=True)
