"""A training ends with the results that count, and every logger and sweeper has them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Script
from unlabeled.commands.train.ending import score, scores, tell, training_of
from unlabeled.evaluation.evaluate_probes import Row

TINY = (
    "experiment=digits",
    "batch_size=64",
    "backbone.width=0.125",
    "online_knn=null",
    "pictures=null",
    "num_workers=0",
    "probe=knn",
    "probe.knn.k=[20]",
    "plan=null",
    "trainer.accelerator=cpu",
)
ROWS = [
    Row("pretrained", "knn/cosine-exp/k=20/T=0.1", 60.0, n_test=450),
    Row("pretrained", "linear/cached-lbfgs-v1", 70.0, n_test=450),
    Row("random init", "linear/cached-lbfgs-v1", 30.0, n_test=450),
    Row("raw pixels", "linear/cached-lbfgs-v1", 72.0, n_test=450),
]


def test_a_sweep_compares_the_linear_probe_and_loggers_have_each_under_a_name_that_all_can_write() -> None:
    assert score(ROWS) == 70.0
    assert score(ROWS[:1]) == 60.0
    assert score([]) is None
    assert scores(ROWS) == {"score/knn/cosine-exp/k20/T0.1": 60.0, "score/linear/cached-lbfgs-v1": 70.0}


def told(run_dir: Path, rows: list[Row], one_of_many: bool = False) -> list[str]:
    said: list[str] = []
    tell(run_dir, rows, said.append, one_of_many)
    return said


def test_the_end_says_quality_beside_its_baselines_then_health_then_speed_then_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"seconds_of_last_session": 61.2, "steps_of_last_session": 300, "images_per_second": 1254.9}
    (tmp_path / "training.json").write_text(json.dumps(training))
    (tmp_path / "metrics.jsonl").write_text('{"step": 300, "epoch": 60.0, "train/loss": 1.0}\n')
    monkeypatch.setattr("sys.argv", ["train.py", "experiment=digits", "max_epochs=60"])
    said = told(tmp_path, ROWS)
    assert said[1] == "70.0 % of 450 test images by linear (random network 30.0, raw pixels 72.0)"
    assert said[2] == "no better than raw pixels: train for longer, or look at the views (unlabeled preview)"
    assert said[3:5] == ["healthy: nothing to warn of", "1,255 images/s, 300 steps in 61 s"]
    assert said[6].split("  ")[-1] == f"open {tmp_path}/report/report.html"
    assert said[-1].endswith("python train.py experiment=digits max_epochs=MORE resume=override")
    assert told(tmp_path, ROWS, one_of_many=True) == said[:5]
    (tmp_path / "report" / "heads").mkdir(parents=True)
    further = [line.split("  ")[-1].strip() for line in told(tmp_path, ROWS) if line not in said]
    assert further == [
        f"unlabeled predict run={tmp_path} data=FOLDER out=predictions.csv",
        f"unlabeled finetune run={tmp_path}",
    ]
    worse = [*ROWS[:2], Row("random init", "linear/cached-lbfgs-v1", 70.0, n_test=450), ROWS[3]]
    assert told(tmp_path, worse)[2].startswith("no better than a random network and raw pixels: train for longer")
    easy = [Row(each.features, each.protocol, 100.0, n_test=24) for each in ROWS[1:3]]
    assert told(tmp_path, easy)[2] == (
        "no better than a random network, which nothing can be in this test: its 24 images are too easy or too few to "
        "tell features apart"
    )
    own = [*ROWS, Row("pretrained", "classifier/of the run", 50.0, n_test=450)]
    assert told(tmp_path, own)[1] == "50.0 % of 450 test images by classifier"
    assert told(tmp_path, [])[1] == "nothing was evaluated: no probe, or no labelled test images"


def test_a_run_is_not_called_healthy_whose_loss_rose_or_whose_plan_has_failed_checks(tmp_path: Path) -> None:
    losses = [*[4.0] * 5, *[3.0] * 20, *[4.5] * 5]
    records = [json.dumps({"step": step + 1, "train/loss": loss}) for step, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(records))
    assert "warning: the loss rose from 4 at the beginning to 4.5 at the end" in told(tmp_path, ROWS)
    checks = [
        {"name": "rate", "passed": False, "found": "lr is 3", "remedy": "give 0.1"},
        {"name": "size", "passed": True, "found": "32", "remedy": "-"},
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"checks": checks}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(records[:25]))  # 4 to 3
    said = told(tmp_path, ROWS)
    assert said[3] == "warning: a check of the plan failed: rate: lr is 3; give 0.1"
    assert not [line for line in said if "healthy" in line or "rose" in line]


def test_a_run_of_few_steps_is_not_called_healthy(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 14, "train/loss": 1.0}\n')
    assert told(tmp_path, ROWS)[3] == "no warning yet: most failures show after 100 steps, this run has 14"


def test_own_labels_that_were_evaluated_are_not_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data:\n  path: /my/images\n")
    assert "evaluate it on your labels" not in "".join(told(tmp_path, ROWS))
    assert "evaluate it on your labels" in "".join(told(tmp_path, []))
    (tmp_path / "config.yaml").write_text("data:\n  image_size: 8\n")
    assert "evaluate it on your labels" in "".join(told(tmp_path, ROWS))


def test_few_labels_come_first(tmp_path: Path) -> None:
    protocol = "linear/cached-lbfgs-v1/{} per class/3 draws"
    few = [
        Row(features, protocol.format(number), top1, n_train=10 * number, n_test=450, draws=[1.0])
        for features, number, top1 in [("pretrained", 5, 80.0), ("pretrained", 1, 68.0), ("raw pixels", 1, 50.0)]
    ]
    said = told(tmp_path, [*few, *ROWS])
    assert said[1] == "\n".join(
        [
            "with 1 label a class 68.0 % (raw pixels 50.0)",
            "70.0 % of 450 test images by linear (random network 30.0, raw pixels 72.0)",
        ]
    )
    assert score([*few, *ROWS]) == 70.0


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of a run that has ended: what the end has written is there once."""
    from unlabeled.commands.arguments.compose import composed
    from unlabeled.commands.train.train import train

    folder = tmp_path_factory.mktemp("logged")
    loggers = ["logger=[csv,tensorboard,mlflow]", f"logger.mlflow.tracking_uri=file:{folder}/mlruns"]
    for _ in range(2):
        config = composed("train", [*TINY, *loggers, f"run_dir={folder}/run", "max_steps=2"])
        train(config, "x", lambda line: None)
    return folder


NAME, SPEED = "score/knn/cosine-exp/k20/T0.1", "speed/images_per_second"


def judged(folder: Path) -> float:
    rows: list[dict[str, Any]] = json.loads((folder / "run" / "report" / "results.json").read_text())["rows"]
    return float(next(row["top1"] for row in rows if row["features"] == "pretrained"))


def test_metrics_jsonl_and_the_table_end_with_the_score(logged: Path) -> None:
    lines = [json.loads(line) for line in (logged / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if NAME in line] == [lines[-1]]
    assert lines[-1] == {"step": 2, "epoch": 2 / 21, NAME: judged(logged)}
    with (logged / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row for row in rows if row[NAME]] == [rows[-1]]
    training = json.loads((logged / "run" / "training.json").read_text())
    assert float(rows[-1][SPEED]) == training["images_per_second"]
    assert len(rows) == len(lines)


def test_tensorboard_has_score_and_speed(logged: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(logged / "run" / "tensorboard")).Reload()
    assert events.Scalars(NAME)[-1].value == pytest.approx(judged(logged), rel=1e-6)
    assert events.Scalars(SPEED)[-1].step == 2


def test_mlflow_has_one_run_with_score_speed_and_configuration(logged: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{logged}/mlruns")
    (experiment,) = [each for each in client.search_experiments() if each.name == "unlabeled"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (logged / "run" / "mlflow_run_id").read_text().strip()
    assert run.data.metrics[NAME] == judged(logged)
    assert run.data.metrics[SPEED] > 0
    assert run.data.params["objective/temperature"] == "0.2"
    assert run.info.status == "FINISHED"


def test_an_optuna_sweep_maximises_the_score(script: Script, tmp_path: Path) -> None:
    sweep = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    sweep += ["hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=1"]
    sweep += ["optimizer.lr=interval(0.01,1)", "name=lr-${optimizer.lr}"]
    finished = script("train.py", *sweep, *TINY, "max_steps=2")
    assert finished.returncode == 0, finished.stderr
    runs = [path for path in (tmp_path / "outputs").iterdir() if path.is_dir()]
    results = {path: json.loads((path / "report" / "results.json").read_text())["rows"] for path in runs}
    best = max(row["top1"] for rows in results.values() for row in rows if row["features"] == "pretrained")
    assert len(runs) == 3
    text = (tmp_path / "outputs" / "optimization_results.yaml").read_text()
    assert float(text.rpartition("best_value:")[2]) == best
    assert "next:" not in finished.stdout  # after a job of a sweep the next one comes


def test_weights_and_biases_hears_the_score_before_its_session_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    from unlabeled.objective import Progress
    from unlabeled.training.loggers import JsonLines, WeightsAndBiases, log_end, wait_for_scores

    logger = WeightsAndBiases(str(tmp_path), "unlabeled", "x", None, None, [], offline=True)
    lines = JsonLines(tmp_path / "metrics.jsonl")
    wait_for_scores([logger])
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.begin(0)
    logger.finalize("success")  # training has ended
    assert logger.ends_later
    log_end([lines, logger], {"score/knn": 60.0}, {"speed/images_per_second": 9.0}, Progress(5, 5, 5, 0))
    summary = capfd.readouterr().err.partition("Run summary:")[2].split()
    assert summary[summary.index("score/knn") + 1] == "60"
    assert summary[summary.index("speed/images_per_second") + 1] == "9"
    assert json.loads(lines.path.read_text()) == {"step": 5, "epoch": 1.0, "score/knn": 60.0}
    assert not (tmp_path / "wandb" / "unfinished").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_record_of_a_training_is_left_out_and_said(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.json").write_bytes(content)
    assert training_of(tmp_path) == {}
    assert capsys.readouterr().out == f"warning: {tmp_path}/training.json is damaged and left out\n"
    assert training_of(tmp_path / "none") == {}
