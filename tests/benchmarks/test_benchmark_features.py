"""What ``benchmarks/features.py`` compares is the same loss, and what its page says is what was measured."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.features import ROWS, whole_nt_xent, whole_queue_contrast
from benchmarks.features_page import CITED, FEATURES, change, page, ratio
from unlabeled.objectives.moco import queue_contrast
from unlabeled.objectives.simclr import nt_xent

ROOT = Path(__file__).parents[2]


def test_both_losses_of_the_whole_matrix_are_those_in_blocks() -> None:
    z1, z2, keys = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)).double() for n in (6, 6, 9))
    keys = F.normalize(keys, dim=1)
    torch.testing.assert_close(whole_nt_xent(z1, z2, 0.1), nt_xent(z1, z2, 0.1))
    torch.testing.assert_close(whole_queue_contrast(z1, z2, keys, 0.1), queue_contrast(z1, z2, keys, 0.1))


def test_the_page_says_medians_ratios_of_neighbours_and_the_test_of_each_feature() -> None:
    assert change("ms", [3000.0, 1000.0, 2000.0], [500.0]) == "2 → 0.5 s"
    assert change("MiB", [1234.5], [12.34]) == "1,234 → 12.3 MiB"
    assert ratio([3.0, 2.0, 4.0], [1.0, 2.0, 2.0]) == "2.00 (1.00–3.00)"
    written = page({f"{row.feature} | {row.setting}": {"ms": [[2.0], [1.0]]} for row in ROWS})
    assert written.count("| 2 → 1 ms | 2.00 |") == len(ROWS)
    assert {row.feature for row in ROWS} == set(FEATURES)
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", written)
    assert len(named) == len(FEATURES) - 1 + 3  # one is of two others; three are cited
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()] == []
    assert all(line.count("|") == 7 for line in CITED)
