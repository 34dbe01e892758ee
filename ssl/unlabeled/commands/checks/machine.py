"""Whether this machine has what the trainer is to use: answered from the file system where that is enough."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlabeled.errors import UserError

GPUS = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")  # below /dev: of NVIDIA, of AMD and of WSL


def check_machine(keys: Mapping[str, Any]) -> None:
    """Raise UserError for an accelerator, a number of devices, a precision or a decoder that this machine cannot give.

    Args:
        keys: of a whole command, each in its own range; ``trainer`` may be among them.
    """
    trainer = keys.get("trainer") or {}
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    if keys.get("accelerator") in ("gpu", "cuda", "mps") and not _has(keys["accelerator"]):
        raise UserError(f"accelerator={keys['accelerator']}: torch finds none on this machine: give auto or cpu")
    if keys.get("device") == "cuda" and not _has("cuda"):
        raise UserError("device=cuda: there is no GPU; give device=cpu, or auto")
    if accelerator in ("gpu", "cuda", "mps") and not _has(accelerator):
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds none on this machine: give auto or cpu, or install the "
            "driver and a torch that is built for it"
        )
    _check_decoder(keys)
    if accelerator == "cpu" and isinstance(devices, list):
        raise UserError(f"trainer.devices={devices}: a CPU has no numbered devices: give how many processes")
    if trainer.get("precision") == "16-mixed" and (accelerator == "cpu" or not _has("gpu")):
        raise UserError("trainer.precision=16-mixed: is for GPUs; on a CPU give 32-true or bf16-mixed, or auto")
    if accelerator in ("gpu", "cuda") and devices != "auto":
        _check_numbers(devices)


def _check_decoder(keys: Mapping[str, Any]) -> None:
    """nvJPEG runs on the GPU of the training process, which its workers cannot use."""
    if (keys.get("data") or {}).get("decode") != "cuda":
        return
    if not _has("cuda"):
        raise UserError("data.decode=cuda: torch finds no NVIDIA GPU on this machine: give auto, torchvision or pillow")
    if keys.get("num_workers"):
        raise UserError("data.decode=cuda: worker processes cannot use the GPU: give num_workers=0 too")


def _has(accelerator: str) -> bool:
    """Torch, which takes two seconds to import, is asked where there may be one."""
    if accelerator != "mps" and sys.platform == "linux" and not any(list(Path("/dev").glob(name)) for name in GPUS):
        return False
    import torch

    mps, cuda = torch.backends.mps.is_available(), torch.cuda.is_available()
    return {"mps": mps, "cuda": cuda}.get(accelerator, mps or cuda)


def _check_numbers(devices: int | Sequence[int]) -> None:
    import torch

    there = torch.cuda.device_count()
    highest = devices if isinstance(devices, int) else max(devices) + 1
    if there and highest > there:
        raise UserError(f"trainer.devices={devices}: this machine has {there} GPUs")
