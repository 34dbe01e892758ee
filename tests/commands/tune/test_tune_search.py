"""A search goes on where it stopped, ends bad trials early, and says what was best."""

import contextlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from PIL import Image

from unlabeled.commands.tune import jobs as jobs_module
from unlabeled.commands.tune.history import Trial, add_trial, best_trial, read_trials
from unlabeled.commands.tune.importance import importances
from unlabeled.commands.tune.page import search_page
from unlabeled.commands.tune.sampler import Sampler
from unlabeled.commands.tune.space import Choices, Interval
from unlabeled.commands.tune.tune import _checked, _seeded, best_command, main
from unlabeled.errors import UserError
from unlabeled.training.run_lock import _start_of, _this_process

pytest.importorskip("optuna", reason="needs the extra tune")

SPACE: dict[str, Interval | Choices] = {"lr": Interval(0.01, 1.0, True, False), "kind": Choices(("a", "b"))}
EPOCHS = 9


def accuracy(values: dict[str, Any], epoch: int) -> float:
    """Best at lr 0.3 and kind b."""
    lr: float = values["lr"]
    return 50 + 5 * epoch - 20 * abs(lr - 0.3) - (0 if values["kind"] == "b" else 10)


def searched(count: int, earlier: Sequence[Trial] = ()) -> list[Trial]:
    """The trials of a search by :func:`accuracy`, from the earlier ones on."""
    sampler, trials = Sampler(SPACE, 0, "halving", 1, earlier), list(earlier)
    for number in range(len(trials), count):
        asked, scores = sampler.ask(), dict[int, float]()
        for epoch in range(1, EPOCHS + 1):
            scores[epoch] = accuracy(asked.params, epoch)
            asked.report(scores[epoch], epoch)
            if asked.should_prune():
                break
        trial = Trial(number, asked.params, "ended" if EPOCHS in scores else "pruned", scores, 1.0)
        sampler.tell(asked, trial)
        trials.append(trial)
    return trials


def test_a_search_that_was_stopped_draws_and_ends_the_trials_of_one_that_was_not(tmp_path: Path) -> None:
    whole = searched(24)
    for trial in whole[:13]:
        add_trial(tmp_path / "trials.jsonl", trial)
    again = searched(24, read_trials(tmp_path / "trials.jsonl"))
    assert again == whole
    assert {trial.state for trial in whole} == {"ended", "pruned"}


def test_the_best_trial_is_near_the_optimum_and_the_key_that_matters_is_named() -> None:
    trials = searched(40)
    best = best_trial(trials)
    assert best is not None
    assert best.values["kind"] == "b"
    assert abs(best.values["lr"] - 0.3) < 0.1
    assert sum(len(trial.scores) for trial in trials) < 0.6 * EPOCHS * len(trials)
    shares = importances(SPACE, trials)
    assert set(shares) == {"kind", "lr"}
    assert sum(shares.values()) == pytest.approx(1)


def test_a_pruned_or_failed_trial_is_never_the_best() -> None:
    trials = [
        Trial(0, {}, "pruned", {1: 99.0}),
        Trial(1, {}, "failed", {1: 98.0}),
        Trial(2, {}, "ended", {1: 90.0, 2: 60.0}),
        Trial(3, {}, "ended", {2: 60.0}),
    ]
    assert best_trial(trials) == trials[2]
    assert best_trial(trials[:2]) is None


def test_names_on_the_page_are_shown_and_not_obeyed() -> None:
    trial = Trial(0, {"lr": 0.1, "kind": "a"}, "failed", {}, 1.0, "<script>alert(1)</script>")
    page = search_page(["data.path=<b>x"], SPACE, [trial], {}, None)
    assert "<script" not in page
    assert "data.path=&lt;b&gt;x" in page


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"number": 0}', '{"number": 0, "values": {}, "state": "x", "scores": {}}']
)
def test_a_damaged_file_of_trials_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"trials\.jsonl: is damaged"):
        read_trials(tmp_path / "trials.jsonl")


@contextlib.contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, fails: Callable[[float], bool]) -> Iterator[list[list[str]]]:
    """Trainings that take no time, in this process."""
    seen: list[list[str]] = []

    def run(self: Any, numbers: Iterator[int], count: int, may_begin: Callable[[], bool]) -> Iterator[Trial]:
        for number in numbers:
            if not may_begin():
                return
            asked = self.sampler.ask()
            seen.append([*self.fixed, *(f"{key}={value}" for key, value in asked.params.items())])
            failed = fails(asked.params["optimizer.lr"])
            scores = {} if failed else {1: 100 * asked.params["optimizer.lr"]}
            trial = Trial(number, asked.params, "failed" if failed else "ended", scores, 1.0, "no" if failed else "")
            self.sampler.tell(asked, trial)
            yield trial

    monkeypatch.setattr(jobs_module.Jobs, "run", run)
    yield seen


LR = "optimizer.lr=interval(0.1,1.0)"


def test_a_second_call_goes_on_and_another_search_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"run_dir={tmp_path}/search"
    with pretended(monkeypatch, lambda lr: False) as seen:
        main(["experiment=digits", LR, "trials=2", place])
        main(["experiment=digits", LR, "trials=3", place])
        assert len(seen) == 3
        with pytest.raises(SystemExit):
            main(["experiment=digits", "optimizer.lr=interval(0.1,2.0)", "trials=3", place])
    assert "holds another search (space differ)" in capsys.readouterr().err
    assert [trial.number for trial in read_trials(tmp_path / "search" / "trials.jsonl")] == [0, 1, 2]
    assert "online_knn.every_n_epochs=1" in seen[0]


def test_of_several_jobs_a_number_that_is_missing_is_not_given_to_two_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "search" / "trials.jsonl"
    with pretended(monkeypatch, lambda lr: False):
        main(["experiment=digits", LR, "trials=1", f"run_dir={tmp_path}/search"])
        path.write_text("".join(path.read_text().replace('"number": 0', f'"number": {number}') for number in (1, 2)))
        main(["experiment=digits", LR, "trials=4", f"run_dir={tmp_path}/search"])
    assert [trial.number for trial in read_trials(path)] == [1, 2, 3, 4]


def test_a_search_whose_first_trials_all_fail_ends_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretended(monkeypatch, lambda lr: True), pytest.raises(SystemExit):
        main(["experiment=digits", LR, f"run_dir={tmp_path}/search"])
    assert "the first 3 trials failed: no" in capsys.readouterr().err


def test_a_search_without_a_result_ends_with_a_status_that_a_script_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretended(monkeypatch, lambda lr: True), pytest.raises(SystemExit) as ended:
        main(["experiment=digits", LR, "trials=2", f"run_dir={tmp_path}/search"])
    assert ended.value.code == 1
    assert "no trial was trained to its end" in capsys.readouterr().out


def test_each_method_of_a_search_over_own_images_has_its_own_picks(tmp_path: Path) -> None:
    for number in range(60):
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(place)
    others = [f"data={tmp_path}/photos", "objective=simclr,moco_v2", "optimizer.lr=interval(0.1,1.0)"]
    fixed, _, _, picked = _checked(others, {"run_dir": str(tmp_path / "search")})
    ours, theirs = (picked({"objective": name, "optimizer.lr": 0.5}) for name in ("simclr", "moco_v2"))
    assert f"data.path={tmp_path}/photos" in fixed
    assert not any("queue_size" in each for each in [*fixed, *ours])
    queue = next(int(each.partition("=")[2]) for each in theirs if each.startswith("objective.queue_size="))
    assert queue <= 60
    command = best_command(fixed, Trial(0, {"objective": "moco_v2"}, "ended", {1: 50.0}, 1.0, ""), picked)
    assert f"objective.queue_size={queue}" in command


def test_a_trial_is_trained_by_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretended(monkeypatch, lambda lr: False) as seen:
        main(["experiment=digits", LR, "trials=1", f"run_dir={tmp_path}/search"])
        assert "trainer.devices=1" in seen[0]
        with pytest.raises(SystemExit):
            main(["experiment=digits", LR, "trainer.devices=2", f"run_dir={tmp_path}/other"])
    assert "trainer.devices=2: a trial is trained by one process; leave it out" in capsys.readouterr().err


def test_two_processes_train_trials_of_digits_and_the_page_has_them(tmp_path: Path) -> None:
    small = ["data=digits", "backbone=resnet_thin", "views.size=16", "max_epochs=2", "optimizer=sgd", "num_workers=0"]
    main([*small, "optimizer.lr=tag(log,interval(0.01,1000000))", "trials=3", "jobs=2", f"run_dir={tmp_path}/search"])
    trials = read_trials(tmp_path / "search" / "trials.jsonl")
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert any(trial.state == "ended" and trial.score is not None and trial.score > 20 for trial in trials)
    page = (tmp_path / "search" / "index.html").read_text()
    assert "Which key" in page or "Score by trial" in page
    folder = tmp_path / "search" / "trials" / "0000"
    assert not (folder / "checkpoints").exists()
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    heard = [line["probe/knn_top1"] for line in metrics if "probe/knn_top1" in line]
    assert heard == list(trials[0].scores.values())


def test_a_last_line_that_was_not_written_whole_is_no_trial_and_the_next_one_takes_its_place(tmp_path: Path) -> None:
    path, trials = tmp_path / "trials.jsonl", searched(3)
    add_trial(path, trials[0])
    with path.open("a") as file:
        file.write('{"number": 1, "val')
    assert read_trials(path) == trials[:1]
    add_trial(path, trials[1])
    assert read_trials(path) == trials[:2]


class _DeadProcess:
    exitcode = -9

    def is_alive(self) -> bool:
        return False

    def join(self, seconds: float = 0) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def test_a_process_that_died_before_it_took_its_trial_fails_that_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(self: jobs_module.Jobs, position: int) -> Any:
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        return jobs_module._Job(_DeadProcess(), ours)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs_module.Jobs, "_started", started)
    half_trained = tmp_path / "0004" / "checkpoints"
    half_trained.mkdir(parents=True)
    found = jobs_module.Jobs(Sampler(SPACE, 0, "none", 1, []), [], tmp_path, []).run(iter([4, 5]), 1, lambda: True)
    assert [(trial.number, trial.state, trial.reason) for trial in found] == [
        (number, "failed", "its process ended with status -9") for number in (4, 5)
    ]
    assert not half_trained.exists()


def test_halving_decides_after_a_ninth_and_a_third_and_not_again_before_the_end() -> None:
    sampler = Sampler(SPACE, 0, "halving", 2, ())
    ended = dict[int, int]()
    for number in range(30):
        asked = sampler.ask(number)
        for epoch in range(1, 21):
            asked.report(accuracy(asked.params, epoch), epoch)
            ended[number] = epoch
            if not sampler.goes_on(asked, epoch):
                break
    assert {*ended.values()} == {2, 6, 20}


def test_a_trial_that_was_lost_is_not_the_number_of_another() -> None:
    whole = Sampler(SPACE, 0, "none", 1, ())
    first = [whole.ask(number).params for number in range(2)]
    again = Sampler(SPACE, 0, "none", 1, [Trial(1, first[1], "ended", {1: 50.0}, 1.0)])  # trial 0 was lost
    assert again.ask(2).params not in first


def test_a_folder_has_one_search_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search").mkdir()
    owner = _this_process(tmp_path / "search")
    other = Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        held = replace(owner, pid=other.pid, started=_start_of(other.pid) or "", token="other")
        (tmp_path / "search" / "lock").write_text(json.dumps(asdict(held)))
        given = ["experiment=digits", "optimizer.lr=0.1,0.2", "trials=1", f"run_dir={tmp_path}/search"]
        with pytest.raises(SystemExit) as stopped:
            main(given)
    finally:
        other.kill()
        other.wait()
    assert stopped.value.code == 2
    assert f"process {other.pid}" in capsys.readouterr().err
    assert sorted(each.name for each in (tmp_path / "search").iterdir()) == ["lock"]


def test_the_best_command_has_the_seed_of_its_trials() -> None:
    trial = Trial(0, {"lr": 0.3}, "ended", {9: 50.0}, 1.0)
    assert best_command(_seeded(["experiment=digits"], {"seed": 3}), trial).endswith("experiment=digits seed=3 lr=0.3")
    assert "seed" not in best_command(_seeded(["experiment=digits"], {"seed": 0}), trial)


@pytest.mark.parametrize(
    ("length", "epochs"),
    [("max_epochs=null max_steps=5000", 714), ("max_epochs=60 max_steps=70", 10), ("max_epochs=60", 60)],
)
def test_rungs_of_a_search_count_the_epochs_that_its_steps_make(length: str, epochs: int, tmp_path: Path) -> None:
    given = ["experiment=digits", "batch_size=192", *length.split(), "optimizer.lr=tag(log,interval(0.01,1))"]
    assert _checked(given, {"run_dir": str(tmp_path / "search"), "seed": 0})[2] == epochs  # 1,347 images: 7 steps
