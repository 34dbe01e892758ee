"""The sum over all candidates in a contrastive loss, without all similarities in memory at once."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Similarities that are there at once: 16 MiB of float32, and 256 MiB on a GPU, which needs more at once to be busy.
CPU_BLOCK, GPU_BLOCK = 2**22, 2**26


def log_sum_exp(queries: Tensor, keys: Tensor, left_out: Tensor | None = None) -> Tensor:
    """ln Σ_j exp(query · key_j) of each query, differentiable.

    Softmax and cross-entropy over the whole matrix keep three copies of it; here a block of it lives at a time, and is
    made again in backward if ``keys`` want a gradient. Keys that want none may change afterwards.

    Args:
        queries: [B, D], already divided by the temperature.
        keys: [K, D].
        left_out: int64 [B], for each query one key that does not count; None: all count.

    Returns:
        [B].
    """
    sums: Tensor = _LogSumExp.apply(queries, keys, left_out)
    return sums


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, left_out: Tensor | None) -> Tensor:
        sums = queries.new_empty(len(queries))
        expected = torch.empty_like(queries) if ctx.needs_input_grad[0] else None  # key under each query's softmax
        for rows in _blocks(queries, keys):
            similarity = _similarity(queries, keys, left_out, rows)
            sums[rows] = similarity.logsumexp(1)
            if expected is not None:
                expected[rows] = similarity.sub_(sums[rows, None]).exp_() @ keys
        own_keys = keys if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(queries, own_keys, left_out, sums, expected)
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        queries, keys, left_out, sums, expected = ctx.saved_tensors
        of_queries = None if expected is None else expected * gradient[:, None]
        if keys is None:
            return of_queries, None, None
        of_keys = torch.zeros_like(keys)
        for rows in _blocks(queries, keys):
            probability = _similarity(queries, keys, left_out, rows).sub_(sums[rows, None]).exp_()
            of_keys.addmm_(probability.T, queries[rows] * gradient[rows, None])
        return of_queries, of_keys, None


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[slice]:
    size = max(1, (CPU_BLOCK if queries.device.type == "cpu" else GPU_BLOCK) // len(keys))
    return (slice(first, first + size) for first in range(0, len(queries), size))


def _similarity(queries: Tensor, keys: Tensor, left_out: Tensor | None, rows: slice) -> Tensor:
    similarity = queries[rows] @ keys.T
    return similarity if left_out is None else similarity.scatter_(1, left_out[rows, None], float("-inf"))
