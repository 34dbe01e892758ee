"""Thousands of images, small: workers do not grow, and a warm start lists nothing."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IMAGES, BATCHES = 3000, 120


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_scale", ROOT / "benchmarks/data_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_warm_start_scans_nothing_and_workers_do_not_grow(
    kind: str, benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlabeled.data.lists import listing
    from unlabeled.data.sources import folder, shards

    monkeypatch.setattr(listing, "_SETTLED", 0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "ssl"))
    monkeypatch.setattr(benchmark, "CLASSES", 20)
    monkeypatch.setattr(benchmark, "PER_SHARD", 1000)
    {"folder": benchmark.write_folders, "shards": benchmark.write_shards}[kind](tmp_path / kind, IMAGES)
    make: Any = {"folder": folder.folder, "shards": shards.shards}[kind]
    cold = make(str(tmp_path / kind), image_size=16, index=str(tmp_path / "index")).train
    for module, scan in ((listing, "_scan"), (shards, "_scan")):
        monkeypatch.setattr(module, scan, None)  # not to be called again
    warm = make(str(tmp_path / kind), image_size=16, index=str(tmp_path / "index")).train
    assert warm.labels.tolist() == cold.labels.tolist()
    assert [warm.name(row) for row in (0, 1234, 2999)] == [cold.name(row) for row in (0, 1234, 2999)]
    result = benchmark.run(kind, tmp_path / kind, tmp_path / "index", BATCHES)
    assert result["images"] == IMAGES
    first, last = (result["memory"][str(batches)] for batches in (BATCHES // 10, BATCHES))
    for before, after in zip(first, last, strict=True):
        assert after["USS"] - before["USS"] < 4, json.dumps(result["memory"])  # MiB
        assert after["USS"] < 100
