"""Frozen features: extracted without changing the network, and held with labels and ids."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unlabeled.core.eager import eager_mode
from unlabeled.data.padding import batch_to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch

# uint8 [B, 3, H, W] and the images' sizes (int64 [B, 2], or None) on the device → float [B, 3, h, w], nothing random
Transform = Callable[[Tensor, Tensor | None], Tensor]

PIXELS = 16  # height and width that raw pixels are averaged to
HEAD_ROWS = 4096  # features that go through a head at a time
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Features:
    """Features of N images, in the order of the images."""

    x: Tensor  # float32 [N, D], the network's output, not normalised
    labels: Tensor  # int64 [N], -1 where there is none
    ids: Tensor  # int64 [N]
    others: dict[str, Tensor] = field(default_factory=dict)  # further kinds (Backbone.kinds), float32 [N, …]

    def of(self, kind: str) -> "Features":
        """Returns the features of one kind as vectors: tokens [N, n, D] become [N, n·D]. ``last`` is ``x``."""
        x = self.x if kind == "last" else self.others[kind]
        return Features(x.flatten(1), self.labels, self.ids)

    def rows(self, chosen: Tensor) -> "Features":
        """Returns the features of some images: a mask bool [N], or their rows int64 [n]."""
        others = {kind: x[chosen] for kind, x in self.others.items()}
        return Features(self.x[chosen], self.labels[chosen], self.ids[chosen], others)

    def labelled(self) -> "Features":
        """Returns the rows that have a label."""
        keep = self.labels >= 0
        return self if bool(keep.all()) else self.rows(keep)

    def to(self, device: torch.device | str) -> "Features":
        """Returns the features on ``device``; probes compute where the features lie."""
        others = {kind: x.to(device) for kind, x in self.others.items()}
        return Features(self.x.to(device), self.labels.to(device), self.ids.to(device), others)


def split_batches(
    images: Tensor, labels: Tensor, ids: Tensor, batch_size: int, sizes: Tensor | None = None
) -> list[Batch]:
    """Cuts an array uint8 [N, 3, H, W] into batches; they are views, so the list costs no memory.

    ``sizes`` int64 [N, 2] for images that do not fill H × W.
    """
    parts = list(zip(*(torch.split(part, batch_size) for part in (images, ids, labels)), strict=True))
    frames = [None] * len(parts) if sizes is None else torch.split(sizes, batch_size)
    return [Batch(x, i, label, sizes=frame) for (x, i, label), frame in zip(parts, frames, strict=True)]


def extract(
    network: nn.Module,
    batches: Iterable[Batch],
    transform: Transform,
    device: torch.device | str,
    precision: str = "32-true",
    kinds: Sequence[str] = ("last",),
    check_finite: bool = True,
) -> Features:
    """Extracts features of all images, on the CPU, with ``network`` in eval mode; restores the network's state.

    The train/eval mode of every submodule and the global random state are restored; ``network`` is moved to ``device``
    and stays there. ``precision`` is Lightning's name: 32-true, bf16-mixed or 16-mixed. ``batches`` is any iterable,
    e.g. ``batched(...)`` or a loader; a generator can be read only once. ``kinds`` of features besides ``last``
    need a Backbone that has them. Raises UserError on features that are not finite, where ``check_finite``.
    """
    rows: list[Features] = []
    extract_each(network, batches, transform, device, precision, kinds, rows.append)
    if not rows:
        raise ValueError("no batches to extract features from; a generator can be read only once, hand over a list")
    return require_finite_images(concatenate(rows), precision) if check_finite else concatenate(rows)


def extract_each(
    network: nn.Module,
    batches: Iterable[Batch],
    transform: Transform,
    device: torch.device | str,
    precision: str,
    kinds: Sequence[str],
    take: Callable[[Features], None],
) -> None:
    """Hands the features of one batch after another to ``take`` and keeps none; all else as :func:`extract`."""
    if precision not in AUTOCAST:
        raise UserError(f"precision {precision!r} is unknown to the evaluation; allowed: {', '.join(AUTOCAST)}")
    device = torch.device(device)
    network.to(device)
    with eval_mode(network), _random_state_kept(device), torch.no_grad():
        begun = (
            _OnItsWay(_forward(network, transform(*batch_to_device(batch, device)), AUTOCAST[precision], kinds), batch)
            for batch in batches
        )
        for found in _one_ahead(begun) if device.type == "cuda" else begun:
            take(found.features())


class _OnItsWay:
    """Features of a batch on their way to the CPU; the host launches the next batch before it waits for them."""

    def __init__(self, found: dict[str, Tensor], batch: Batch) -> None:
        self._batch, self._copies, self._arrived = batch, found, None
        if found["last"].device.type == "cuda":
            self._copies = {kind: _begin_copy(values) for kind, values in found.items()}
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def features(self) -> Features:
        """Waits for the features, and returns them in memory that is not pinned, of which there is little."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._copies = {kind: values.clone() for kind, values in self._copies.items()}
        here = {kind: values.cpu() for kind, values in self._copies.items()}
        return Features(here.pop("last"), self._batch.labels.cpu(), self._batch.ids.cpu(), here)


def _one_ahead(begun: Iterator[_OnItsWay]) -> Iterator[_OnItsWay]:
    """Yields each when the next one has begun."""
    before = next(begun, None)
    for after in begun:
        if before is not None:
            yield before
        before = after
    if before is not None:
        yield before


def _begin_copy(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def concatenate(parts: Sequence[Features]) -> Features:
    """Joins the features of some images to those of others, of the same kinds."""
    if len(parts) == 1:
        return parts[0]
    others = {kind: torch.cat([part.others[kind] for part in parts]) for kind in parts[0].others}
    x, labels, ids = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "labels", "ids"))
    return Features(x, labels, ids, others)


@torch.no_grad()
def apply_head(head: nn.Module, features: Features) -> Features:
    """Applies a head in eval mode to features [N, D], on their device; the head is moved there."""
    head.to(features.x.device)
    with eval_mode(head), full_float32(features.x.device):
        x = torch.cat([head(rows) for rows in torch.split(features.x, HEAD_ROWS)])
    return Features(x, features.labels, features.ids)


def pixel_features(batches: Iterable[Batch], transform: Transform, device: torch.device | str = "cpu") -> Features:
    """Returns the transformed images as features: averaged to 16 × 16 if larger, then flattened."""
    return extract(PixelNetwork(), batches, transform, device)


class PixelNetwork(nn.Module):
    """Maps float [B, 3, h, w] to [B, 3·min(h, 16)·min(w, 16)]: a baseline that uses the raw pixels."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        # 768 numbers, like features: all 3,072 of CIFAR made probes ten times slower than 512 features
        size = min(height, PIXELS), min(width, PIXELS)
        return nn.functional.adaptive_avg_pool2d(images, size).flatten(1)


def state_hash(module: nn.Module) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and bytes of the whole state_dict, equal on any device."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        # reshape: a scalar cannot be viewed as bytes; uint8: numpy has no bfloat16
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def top1(predictions: Tensor, labels: Tensor) -> float:
    """Returns the per cent of rows of ``predictions`` int64 [N] that equal ``labels``."""
    return 100 * int((predictions == labels).sum()) / len(labels)


def unit_rows(x: Tensor) -> Tensor:
    """Scales rows [N, D] to length 1, whatever their length was; rows of zeros stay.

    Rows are first divided by a power of two, which is exact: in float32 the square of 1e20 is infinite, that of 1e-20
    is 0.
    """
    exponent = torch.frexp(x.abs().amax(dim=1, keepdim=True)).exponent.clamp(min=-100)
    return nn.functional.normalize(torch.ldexp(x, -exponent))


def all_finite(x: Tensor) -> bool:
    """Checks that every number of ``x`` is finite; their sum need not be."""
    # a mask of all elements would take as long as everything in k-NN except its products
    total = x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(total.isfinite()) or bool(x.isfinite().all())


def require_finite(probe: str, *features: Tensor) -> None:
    """Raises UserError, in the name of a probe, at features that are not finite."""
    if not all(all_finite(x) for x in features):
        raise UserError(f"{probe} was given features that are not finite: the network has diverged")


def require_finite_images(features: Features, precision: str) -> Features:
    """Returns the features unchanged. Raises UserError where those of an image are not finite."""
    every = (features.x, *features.others.values())
    broken = torch.stack([~x.flatten(1).isfinite().all(dim=1) for x in every]).any(dim=0)
    if bool(broken.any()):
        first = int(features.ids[broken][0])
        raise UserError(
            f"the features of {int(broken.sum())} of {len(broken)} images are not finite (first id {first}) under "
            f"precision {precision}: the network has diverged, or 16-mixed overflows and 32-true would not"
        )
    return features


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Sets eval mode, uncompiled; restores every submodule's mode afterwards, frozen parts included."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with eager_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training  # .train() would change the submodules too


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Computes products in full float32: TF32 keeps 10 bits, which reorders neighbours and stalls a line search."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Restores the random state, because a network may draw in eval mode too (MAE masks patches)."""
    if device.type == "cpu":
        devices, kind = [], "cuda"
    else:
        devices, kind = [torch.empty(0, device=device).get_device()], device.type  # "cuda" alone has no index
    with torch.random.fork_rng(devices, device_type=kind):
        yield


def _forward(network: nn.Module, images: Tensor, dtype: torch.dtype | None, kinds: Sequence[str]) -> dict[str, Tensor]:
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        if isinstance(network, Backbone) and set(kinds) != {"last"}:
            found = network.features(images, list(dict.fromkeys(["last", *kinds])))
        else:
            found = {"last": network(images)}
    x = found["last"]
    if x.ndim != 2 or len(x) != len(images):
        raise ValueError(f"a backbone returns features [{len(images)}, D]; this one returned {list(x.shape)}")
    return {kind: torch.as_tensor(values, dtype=torch.float32) for kind, values in found.items()}
