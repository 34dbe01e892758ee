"""The probe that runs during training: what it looks at, what it leaves alone, when it speaks."""

import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.evaluation.features import state_hash
from unlabeled.training.online_knn import OnlineKNN
from unlabeled.training.run import Run

CONF = Path(__file__).parents[2] / "conf"


def make_run(folder: Path, *overrides: str) -> Run:
    common = ["experiment=digits", "backbone.width=0.125", "trainer.accelerator=cpu", "num_workers=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*common, f"run_dir={folder}", *overrides])
    resolved = open_run(config)
    run = build_run(config, resolved)
    run.fit(resolved)
    return run


def probe(**changes: int) -> OnlineKNN:
    values = {"every_n_epochs": 1, "queries": 50, "bank": 200, "k": 5, "batch_size": 64} | changes
    return OnlineKNN(**values, temperature=0.1)


def test_queries_and_bank_are_disjoint_labelled_and_the_same_for_a_seed() -> None:
    labels = torch.arange(100) % 3 - 1  # a third is unlabelled
    queries, bank = probe(queries=10)._parts(labels, seed=1)
    assert (len(queries), len(bank)) == (6, 60)  # a tenth of the 66 labelled images; all the others
    assert not set(queries.tolist()) & set(bank.tolist())
    assert int(labels[torch.cat([queries, bank])].min()) == 0
    again, other = probe(queries=10)._parts(labels, seed=1), probe(queries=10)._parts(labels, seed=2)
    assert torch.equal(queries, again[0])
    assert not torch.equal(queries, other[0])


def test_it_speaks_after_every_nth_epoch_and_after_the_last_step_in_per_cent(tmp_path: Path) -> None:
    make_run(tmp_path, "batch_size=400", "max_steps=8", "online_knn.every_n_epochs=2", "log_every_n_steps=100")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "probe/knn_top1" in line]
    assert [line["step"] for line in lines] == [6, 8]  # 3 steps an epoch
    assert all(10 < line["probe/knn_top1"] <= 100 for line in lines)
    assert lines[0]["epoch"] == 2.0


def test_a_run_with_it_ends_bit_for_bit_where_a_run_without_it_does(tmp_path: Path) -> None:
    common = ("batch_size=400", "max_steps=4")
    watched = make_run(tmp_path / "watched", *common, "online_knn.every_n_epochs=1")
    alone = make_run(tmp_path / "alone", *common, "online_knn=null")
    assert state_hash(watched.module) == state_hash(alone.module)


def test_a_measurement_leaves_the_network_its_modes_and_the_random_state_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, "batch_size=400", "max_steps=1", "online_knn=null")
    run.module.train()
    before, random_state = state_hash(run.module), torch.get_rng_state()
    top1 = probe().measure(run.module, run.data, torch.device("cpu"))
    assert top1 is not None
    assert 0 <= top1 <= 100
    assert state_hash(run.module) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(part.training for part in run.module.modules())
