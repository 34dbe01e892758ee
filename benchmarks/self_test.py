"""Makes the checkpoint that ``eval_linear.py self_test=true`` judges: python benchmarks/self_test.py

Trains a thin ResNet on digits for half a minute and keeps its backbone, in half precision, and its accuracies beside
the code that reads them; not where a test image lies so near a border that another machine's rounding could move it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from unlabeled.commands.build.evaluation import build_evaluation, complete_config
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.self_test import FILE, STORED
from unlabeled.weights import load_backbone, read_checkpoint

ROOT = Path(__file__).parents[1]
SETTINGS = ["experiment=digits", "backbone.width=0.125", "probe.knn.k=[20]", "cache_gib=0"]
ROUNDING = 1e-4  # relative to the features' length; float32 on another machine differs by about 1e-6


def main() -> None:
    """Train, keep, judge, and look at what rounding would do."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"run_dir={folder}/run"
        subprocess.run([sys.executable, ROOT / "train.py", *SETTINGS, place], check=True)
        run = read_checkpoint(Path(folder) / "run" / "checkpoints" / "last.ckpt")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = OmegaConf.to_container(compose("train", [*SETTINGS, "name=self_test"]), resolve=True)
        kept = {name: value.half() for name, value in run.state_dict.items() if name.startswith("objective.backbone.")}
        torch.save({"state_dict": kept, "config": config, "progress": run.progress}, FILE)
        first = _judged(folder, 0.0)
        assert all(_judged(folder, ROUNDING, seed) == first for seed in range(20)), "too near a border: another seed"
    STORED.write_text(json.dumps(first, indent=2) + "\n")
    print(f"{FILE} {FILE.stat().st_size:,} bytes: {first}")


def _judged(folder: str, noise: float, seed: int = 0) -> dict[str, float]:
    """Accuracies with features that are moved by some noise."""
    checkpoint = read_checkpoint(FILE)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = complete_config(compose("eval_linear", ["accelerator=cpu", "cache_gib=0"]), checkpoint)
    assert checkpoint.config is not None
    config.probe = checkpoint.config["probe"]
    evaluation = build_evaluation(config, None, "cpu")
    generator = torch.Generator().manual_seed(seed)

    def move(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(output.shape, generator=generator)
        moved: torch.Tensor = output + noise * output.norm(dim=1, keepdim=True) * drawn / output.shape[1] ** 0.5
        return moved

    if noise:
        load_backbone(checkpoint, evaluation.backbone)
        evaluation.backbone.register_forward_hook(move)
    rows = evaluate(evaluation, checkpoint, Path(folder) / "report", "self-test")
    return {row.protocol: row.top1 for row in rows if row.features == "pretrained"}


if __name__ == "__main__":
    main()
