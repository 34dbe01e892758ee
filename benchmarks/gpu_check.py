"""The parts of ``benchmarks/gpu_check.sh``: each writes its results as JSON as soon as it has them.

python benchmarks/gpu_check.py --out FOLDER [--small] [--data FOLDER] PART
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# torch and Lightning are imported where they are used: a part that is skipped needs none of their seconds
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees only its own folder

EPOCH = 50_000  # images of CIFAR-10
SPEEDRUN_SECONDS = 150.0  # of training: with start-up, compilation and probes about three minutes
WARM = 3  # steps
Overrides = tuple[str, ...]


class Check:
    """What every part needs: where results go, and how small everything is."""

    def __init__(self, out: Path, small: bool, data: Path | None) -> None:
        self.out, self.small, self.data = out, small, data
        self.work = out / "images"
        self.steps, self.repeats = (2, 3) if small else (20, 3)

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Writes one result, with the device."""
        found = {"name": name, **self._versions(), "small": self.small} | result
        (self.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found), flush=True)

    def _versions(self) -> dict[str, str]:
        if "torch" not in sys.modules:  # the part did nothing
            return {"device": "none"}
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return {"device": device, "torch": torch.__version__}

    def images_32(self) -> Path:
        from benchmarks.pretraining.images import parquet_files

        return self.data or parquet_files(self.work / "32", 160 if self.small else 10_240, 32)

    def photographs(self) -> Path:
        from benchmarks.pretraining.images import shard_files

        count = 24 if self.small else 10_240
        return shard_files(self.work / "photographs", count, *((75, 100) if self.small else (375, 500)))

    @property
    def device(self) -> Overrides:
        return ("trainer.accelerator=cpu" if self.small else "trainer.accelerator=gpu", "trainer.devices=1")

    def row(self, name: str, overrides: Overrides, settle: int = 0) -> float:
        """Writes images a second of a run beside its limit; returns them."""
        from benchmarks.pretraining.limit import InTurn, efficiencies
        from benchmarks.pretraining.measure import fit, peak_bytes

        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            turns = InTurn(WARM, self.steps, self.repeats, settle)
            run = fit((*overrides, *self.device), Path(folder) / "run", turns.steps_needed, turns)
        images = self.steps * run.module.images_per_step
        each = efficiencies(turns.run, turns.limit)
        found: dict[str, Any] = {
            "images_per_second": images / statistics.median(turns.run),
            "limit_images_per_second": images / statistics.median(turns.limit),
            "efficiency": statistics.median(each),
            "batch": run.module.images_per_step,
            "precision": str(run.trainer.precision),
            "peak_gib": peak_bytes(run.trainer.strategy.root_device) / 2**30,
            "seconds": time.perf_counter() - started,
        }
        self.write(name, found)
        run.close()
        return float(found["images_per_second"])

    def launches(self, name: str, overrides: Overrides) -> None:
        """Writes what the profiler counts in a step."""
        from benchmarks.pretraining.measure import fit
        from benchmarks.pretraining.profiled import Launches

        with tempfile.TemporaryDirectory() as folder:
            counted = Launches()
            run = fit((*overrides, *self.device), Path(folder) / "run", counted.steps_needed, counted)
        self.write(name, {"per_step": counted.per_step, "batch": run.module.images_per_step})
        run.close()


def simclr_32(check: Check) -> None:
    """ResNet-18 at 32 pixels: eager views first, which cannot fail for a compiler's reasons, then compiled ones."""
    tiny = ("backbone=resnet_thin", "backbone.width=0.125", "batch_size=16") if check.small else ("batch_size=512",)
    given = ("experiment=simclr_cifar10", "data=parquet", f"data.path={check.images_32()}", *tiny)
    check.row("simclr_32_eager", (*given, "views.compile=false"))
    check.launches("simclr_32_eager_launches", (*given, "views.compile=false"))
    if not check.small:  # on a CPU inductor takes a minute
        check.row("simclr_32_compiled_views", (*given, "views.compile=true"))
        check.launches("simclr_32_compiled_views_launches", (*given, "views.compile=true"))


def methods_32(check: Check) -> None:
    """MoCo v2 with its eight parts of BatchNorm, and SwAV with its four crops."""
    tiny = ("backbone=resnet_thin", "backbone.width=0.125", "batch_size=16") if check.small else ()
    for name, experiment, queue in (
        ("moco_32", "moco_v2_cifar10", "objective.queue_size=64"),
        ("swav_32", "swav_cifar10", "objective.queue_length=64"),
    ):
        given = (f"experiment={experiment}", "data=parquet", f"data.path={check.images_32()}", *tiny)
        check.row(name, (*given, *((queue,) if check.small else ())))
        if not check.small:
            check.launches(f"{name}_launches", given)


def choices_32(check: Check) -> None:
    """What only a GPU can have: CUDA graphs, and the kernels of MoCo's split BatchNorm beside its two other forms."""
    if check.small:
        check.write("choices_32", {"skipped": "needs a GPU"})
        return
    from benchmarks.launches import without_split_kernels

    data = ("data=parquet", f"data.path={check.images_32()}")
    simclr, moco = (("experiment=" + name, *data) for name in ("simclr_cifar10", "moco_v2_cifar10"))
    check.row("moco_32_whole_batchnorm", (*moco, "objective.bn_splits=1"))
    with without_split_kernels():
        check.row("moco_32_between_copies", moco)
    check.row("simclr_32_graph", (*simclr, "batch_size=512", "views.compile=true", "compile=graph"))
    check.launches("simclr_32_graph_launches", (*simclr, "batch_size=512", "views.compile=true", "compile=graph"))


def photographs(check: Check) -> None:
    """ResNet-50 and MAE ViT-B at 224 pixels: from a pack that workers decode, then from memory."""
    images, pack = check.photographs(), check.out / "pack"
    workers = 1 if check.small else 16
    command = ["pack", "data=shards", f"data.path={images}", f"out={pack}", f"num_workers={workers}"]
    command += ["image_size=48" if check.small else "image_size=256", f"shard_images={12 if check.small else 640}"]
    subprocess.run([sys.executable, "-m", "unlabeled", *command], check=True, cwd=ROOT)
    report = json.loads((pack / "pack.json").read_text())
    check.write("pack", {key: report[key] for key in ("images", "bytes", "seconds")})
    for name, given in _networks(check):
        whole = (*given, "data=shards", f"data.path={pack}")
        check.row(f"{name}_pack", (*whole, "memory_gib=0", f"num_workers={workers}"), 1 if check.small else 16)
        check.row(f"{name}_memory", (*whole, f"num_workers={workers}"))


def _networks(check: Check) -> Iterator[tuple[str, Overrides]]:
    tiny: Overrides = ("views.size=32", "batch_size=8", "data.image_size=48") if check.small else ("batch_size=256",)
    thin = ("backbone=resnet_thin", "backbone.width=0.125") if check.small else ()
    yield "resnet50_224", ("experiment=simclr_imagenet", "optimizer.warmup_epochs=0", *thin, *tiny)
    vit: Overrides = ()
    if check.small:
        vit = ("backbone=vit_tiny", "backbone.image_size=32", "backbone.patch_size=8", "backbone.depth=1")
        vit += ("objective.decoder_depth=1", "objective.decoder_width=32", "objective.decoder_heads=2")
    yield "mae_vit_base_224", ("experiment=mae_imagenet_vit_base", "optimizer.warmup_epochs=0", *vit, *tiny)


def speedrun(check: Check) -> None:
    """``cifar10_speedrun`` for about three minutes: as many epochs as the first part says, and their accuracy."""
    if check.data is None and not check.small:
        check.write("speedrun", {"skipped": "no --data: there are no real images"})
        return
    rates = [
        json.loads(path.read_text())["images_per_second"]
        for path in check.out.glob("simclr_32_*d*.json")
        if "launches" not in path.name
    ]
    epochs = 1 if check.small else max(3, int(SPEEDRUN_SECONDS * max([*rates, 2000.0]) / EPOCH))
    tiny = ("backbone=resnet_thin", "backbone.width=0.125", "batch_size=16", "compile=null", "views.compile=false")
    keys = (f"max_epochs={epochs}", f"optimizer.warmup_epochs={min(10, epochs / 10)}", "plan=null")
    data = ("data=parquet", f"data.path={check.images_32()}")
    run_dir, started = check.out / "speedrun", time.perf_counter()
    command = ["train.py", "experiment=cifar10_speedrun", f"run_dir={run_dir}", *data, *keys]
    command += [*(tiny if check.small else ()), f"trainer.accelerator={'cpu' if check.small else 'gpu'}"]
    command += ["probe=quick"]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
    results = json.loads((run_dir / "report" / "results.json").read_text())
    top1 = {row["protocol"]: row["top1"] for row in results["rows"] if row["features"] == "pretrained"}
    check.write("speedrun", {"epochs": epochs, "seconds": time.perf_counter() - started, "top1": top1})


def lightly(check: Check) -> None:
    """The same SimCLR in lightly, by the driver of ``benchmarks/peers.py``, where its wheel is there."""
    if importlib.util.find_spec("lightly") is None:
        check.write("lightly", {"skipped": "lightly is not installed"})
        return
    if check.data is None:
        check.write("lightly", {"skipped": "no --data: its driver reads CIFAR-10"})
        return
    from benchmarks.peer_drivers.harness import PREFIX

    steps = {"warm_up": 1, "steps": 1, "workers": 0} if check.small else {"warm_up": 20, "steps": 100, "workers": 16}
    device = "cpu" if check.small else "cuda"
    job = {"part": "resnet18", "data": str(check.data), "device": device, "started": time.time()} | steps
    command = [sys.executable, "-m", "benchmarks.peer_drivers.lightly_simclr", json.dumps(job)]
    finished = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    line = next(line for line in finished.stdout.splitlines() if line.startswith(PREFIX))
    check.write("lightly", {"answer": json.loads(line.removeprefix(PREFIX))})


def summary(check: Check) -> None:
    """Writes summary.md: each part with its end, each result in a line; what is not there was not measured."""
    lines = ["# Check of a GPU", "", "| part | exit status | seconds |", "|---|---|---|"]
    for path in sorted(check.out.glob("*.part.json"), key=lambda path: path.stat().st_mtime_ns):
        part = json.loads(path.read_text())
        code = {-1: "no time left", 124: "over its time limit", 137: "killed"}.get(part["code"], part["code"])
        lines.append(f"| {part['part']} | {code} | {part['seconds']} |")
    lines += ["", "| result | device | images/s | limit, images/s | efficiency | other |", "|---|---|---|---|---|---|"]
    shown = ("images_per_second", "limit_images_per_second", "efficiency")
    for path in sorted(check.out.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        found = json.loads(path.read_text())
        if path.name.endswith(".part.json") or "name" not in found:
            continue
        numbers = [f"{found[key]:,.2f}" if key in found else "" for key in shown]
        left = {key: value for key, value in found.items() if key not in (*shown, "name", "device", "torch", "small")}
        lines.append("| " + " | ".join([found["name"], found["device"], *numbers, json.dumps(left)]) + " |")
    (check.out / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


PARTS: dict[str, Callable[[Check], None]] = {
    part.__name__: part for part in (simclr_32, methods_32, photographs, speedrun, choices_32, lightly, summary)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--small", action="store_true", help="on a CPU, to see that every part works")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as train.parquet and test.parquet")
    given = parser.parse_args()
    PARTS[given.part](Check(given.out.resolve(), given.small, given.data and given.data.resolve()))


if __name__ == "__main__":
    main()
