"""Compiles the networks with ``torch.compile``, in place. Losses gather and draw, so they are not compiled."""

from typing import Any, Literal

import torch
from torch import nn

from unlabeled.backbones.recomputation import is_recomputed
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Objective, Progress

Mode = Literal["default", "reduce-overhead", "max-autotune", "graph"]
GRAPHS = 64  # per module; above it torch runs uncompiled, and its default of 8 is too low for many crops


def compile_network(objective: Objective, mode: Mode, device: torch.device, processes: int, sharded: bool) -> None:
    """Marks backbone, heads and teachers for compilation at their first call.

    There is one graph for each input shape, or, for a method whose shapes vary, one for all lengths of a sequence.

    ``nn.Module.compile`` keeps the modules themselves: names in the state dict, copies and hooks stay valid. Dropout
    and stochastic depth draw the same numbers as without compiling. torch's SyncBatchNorm (several GPUs) splits a graph
    in two (pytorch/pytorch, issue 161302); ours, for CPUs, does not. Nothing is measured on a GPU yet.

    Args:
        objective: its children that have parameters are compiled.
        mode: of ``torch.compile``; ``graph`` is ``reduce-overhead`` that stops the run where a forward or a backward
            cannot be captured as a CUDA graph, which torch otherwise runs without one.
        device: where it will compute.
        processes: of the run.
        sharded: whether weights will be sharded over them.

    Raises:
        UserError: the objective cannot be compiled, or not with these settings.
    """
    _check(objective, mode, device, processes, sharded)
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    options = {**_options(mode), "fallback_random": True}
    for part in _parts(objective):
        part.compile(dynamic=None if objective.shapes_vary else False, options=options)
    if mode != "default":
        objective.register_forward_pre_hook(_begin_step)


def _options(mode: Mode) -> dict[str, Any]:
    import torch._inductor

    if mode == "graph":
        return {**torch._inductor.list_mode_options("reduce-overhead"), "triton.cudagraph_or_error": True}
    return torch._inductor.list_mode_options(mode)


def _parts(objective: Objective) -> list[nn.Module]:
    """Returns the modules to compile. A ViT that masks patches is called by ``tokens``, so its parts are compiled."""
    parts: list[nn.Module] = []
    for child in objective.children():
        parts += child.children() if isinstance(child, Backbone) and hasattr(child, "tokens") else [child]
    return [part for part in parts if any(True for _ in part.parameters())]


def _begin_step(objective: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Lets CUDA graphs reuse the memory of the last step's outputs, except for gradients that are accumulated."""
    progress: Progress = inputs[1]
    if progress.part == 0:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _check(objective: Objective, mode: Mode, device: torch.device, processes: int, sharded: bool) -> None:
    if sharded:
        raise UserError(f"compile={mode}: does not go with trainer.strategy=fsdp, give ddp or compile=null")
    if mode != "default" and device.type == "cpu":
        raise UserError(f"compile={mode}: needs a GPU, and this run is on a CPU; leave compile out")
    if mode != "default" and objective.shapes_vary:
        raise UserError(
            f"compile={mode}: a CUDA graph repeats one shape, and blocks of {type(objective).__name__} have other sizes"
            " in each step: give compile=default"
        )
    if mode != "default" and processes > 1:
        raise UserError(f"compile={mode}: torch makes no CUDA graphs of BatchNorm under ddp, give compile=default")
    if any(is_recomputed(module) and any(True for _ in module.buffers()) for module in objective.modules()):
        raise UserError(
            f"compile={mode}: does not go with gradient checkpointing of BatchNorm, "
            "give backbone.gradient_checkpointing=false"
        )
