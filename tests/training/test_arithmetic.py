"""A GPU's arithmetic is set for the time of a run, and afterwards is what it was."""

from contextlib import suppress

import pytest
import torch

from unlabeled.training.machine.arithmetic import describe_precision, training_arithmetic

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings() -> tuple[bool, str]:
    return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()


def test_a_run_on_a_gpu_tries_algorithms_and_multiplies_float32_in_full_and_gives_back_what_was_set() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with training_arithmetic(CPU):
            assert settings() == (False, "high")
        with suppress(KeyError), training_arithmetic(GPU):
            assert settings() == (True, "highest")
            raise KeyError
        assert settings() == (False, "high")
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True)
    try:
        with training_arithmetic(GPU):
            assert settings() == (False, "highest")
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_precision_that_is_said_names_tf32_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_precision("32-true", CPU) == "32-true"
    assert describe_precision("bf16-mixed", GPU) == "bf16-mixed"
    assert describe_precision("32-true", GPU) == "32-true, convolutions in TF32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert describe_precision("32-true", GPU) == "32-true, convolutions in float32"
