"""This project: ``train.py`` itself, with a clock on its module; its k-NN, and its grid of linear heads."""

import runpy
import sys
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peer_drivers import harness
from benchmarks.peer_drivers.harness import Job

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [
    "objective=simclr",
    f"objective.temperature={harness.TEMPERATURE}",
    "views=simclr_small",
    "optimizer=sgd",
    f"optimizer.lr={harness.LR}",
    "optimizer.weight_decay=0",
    f"batch_size={harness.BATCH_SIZE}",
    "backbone.stem=cifar",
    "trainer.precision=bf16-mixed",
    "probe=none",
    "online_knn=null",
    "pictures=null",
]


def pretrain(job: Job) -> None:
    sys.meta_path.insert(0, Hook(job))
    sys.argv = ["train.py", *TRAIN, *chosen(job)]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


class Hook(MetaPathFinder):
    """Puts a clock on runs when ``train.py`` imports what they are, so that nothing is imported before it does."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != "unlabeled.training.run":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def with_clock(module: Any) -> None:
            execute(module)
            fit = module.Run.fit

            def fit_timed(run: Any, resolved: dict[str, Any]) -> None:
                run.module.on_train_batch_end = harness.Clock(self.job).tick
                fit(run, resolved)

            module.Run.fit = fit_timed

        loader.exec_module = with_clock
        return spec


def chosen(job: Job) -> list[str]:
    data = ["data=folder", f"data.path={job.data}/folder", "data.image_size=32", "data.square=true"]
    if job.part != "first_step":
        data = ["data=parquet", f"data.path={job.data}"]
    return [
        *data,
        f"backbone={'resnet18' if job.part == 'resnet18' else 'resnet_thin'}",
        f"num_workers={job.workers}",
        f"trainer.accelerator={'gpu' if job.device == 'cuda' else 'cpu'}",
        "trainer.devices=1",
        f"max_steps={job.last_step}",
        f"run_dir={job.out}",
    ]


def knn(job: Job) -> dict[str, float]:
    import torch

    from unlabeled.evaluation.features import Features
    from unlabeled.evaluation.probes.knn import KNN

    bank, labels, queries, truth = harness.features(job)
    train, test = Features(bank, labels, labels), Features(queries, truth, truth)
    probe = KNN([20], 0.1)
    probe.fit_predict(train, test.rows(torch.arange(500)), job.classes)
    seconds, (score,) = harness.timed(lambda: probe.fit_predict(train, test, job.classes))
    torch.save(score.predictions, job.out)
    return {"knn": seconds, "correct": float((score.predictions == truth).sum())}


def linear(job: Job) -> dict[str, float]:
    """13 rates in one pass, one rate alone, and torch's own modules one by one, as benchmarks/probes.py has them."""
    from benchmarks.probes import RATES, one_by_one
    from unlabeled.evaluation.probes.linear import standardise
    from unlabeled.evaluation.probes.sgd_grid import Head, SGDGrid

    bank, labels, _, _ = harness.features(job)
    (x,) = standardise(bank, dtype=bank.dtype)
    grid = SGDGrid(RATES, 1, harness.BATCH_SIZE, [0.0], harness.MOMENTUM, 0.1, 0)

    def fit(rates: list[float]) -> None:
        grid.fit(x, labels, job.classes, [Head("last", rate, 0.0) for rate in rates])

    fit(RATES)
    bare = x[:, :-1].contiguous()
    one_by_one(bare[:512], labels[:512])
    found = {"grid": harness.timed(partial(fit, RATES))[0], "one_rate": harness.timed(partial(fit, [0.1]))[0]}
    return found | {"one_by_one": harness.timed(partial(one_by_one, bare, labels))[0]}


if __name__ == "__main__":
    harness.run({"pretrain": pretrain, "knn": knn, "linear": linear})
