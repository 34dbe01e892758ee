"""``unlabeled tune``: many trainings, and the command of the best of them."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.command_line import Reader
from unlabeled.commands.config import check_command, conf_folder, one_line_errors, with_joined_options
from unlabeled.commands.train.picks import completed
from unlabeled.commands.tune.history import Trial, add_trial, best_trial, read_trials
from unlabeled.commands.tune.jobs import Jobs
from unlabeled.commands.tune.sampler import NINTH, Sampler
from unlabeled.commands.tune.space import Choices, Space, assignments, corners, split
from unlabeled.core.escaping import for_shell
from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_utf8
from unlabeled.core.writing import check_folder, make_folder, write_atomic
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.training.run_lock import RunLock

OWN = ("run_dir", "trials", "minutes", "pruner", "jobs", "seed")
OF_TRIALS = ("name", "resume", "replay", "preview", "plan_only")  # keys of a training that no trial takes
PROCESSES = ("trainer.devices=", "trainer.num_nodes=")
ONE_PROCESS = "trainer.devices=1"  # of a trial: processes that it started would begin a search of their own
ALWAYS = ["pictures=null", "plan=null", "checkpoints_kept=1"]
FAILURES = 3  # in a row, with nothing trained, after which a search ends


def main(arguments: Sequence[str]) -> None:
    """The command.

    Args:
        arguments: what stands behind ``unlabeled tune``.
    """
    conf, arguments = conf_folder(), with_joined_options(arguments)
    if {"--help", "-h"} & {*arguments}:
        print(Reader(conf, "tune", []).help())
        return
    own = [each for each in arguments if each.split("=")[0] in OWN]
    with one_line_errors(conf, "tune", own):
        others = [each for each in arguments if each not in own]
        config = composed("tune", own)
        check_command(config, conf / "tune.yaml")
        keys: Any = OmegaConf.to_container(config)
        fixed, space, epochs, picked = _checked(others, keys)
        folder = Path(keys["run_dir"]).expanduser()
        check_folder("run_dir", folder, ("search.json", "trials.jsonl", "index.html"))
        try:
            with closing(_lock(folder)):  # two searches would delete each other's trials
                _open_folder(folder, fixed, space, keys)
                best = search(folder, fixed, space, keys, max(1, (epochs or 1) // NINTH), picked)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on: {for_shell(['unlabeled', 'tune', *arguments])}")
            raise SystemExit(128 + signal.SIGINT) from None
        if best is None:  # a script is not to go on as after a result
            raise SystemExit(1)


Picked = Callable[[Mapping[str, Any]], Sequence[str]]  # values of a trial → what else suits them and own images


def search(
    folder: Path,
    fixed: Sequence[str],
    space: Space,
    keys: dict[str, Any],
    first: int,
    picked: Picked = lambda values: (),
) -> Trial | None:
    """Trains trials until there are enough of them, writes the page, and returns the best.

    Args:
        folder: of the search, which holds its ``search.json``.
        fixed: overrides of every trial.
        space: what is searched.
        keys: of ``conf/tune.yaml``.
        first: epochs before which no trial ends early.
        picked: overrides of a trial besides.

    Raises:
        UserError: Optuna is not installed, or the first trials all failed.
    """
    trials = read_trials(folder / "trials.jsonl")
    sampler = Sampler(space, keys["seed"], keys["pruner"], first, trials)
    first_left = 1 + max((trial.number for trial in trials), default=-1)  # with several jobs numbers may be missing
    left = iter(range(first_left, first_left + keys["trials"] - len(trials)))
    deadline = float("inf") if keys["minutes"] is None else time.monotonic() + 60 * keys["minutes"]
    over = f"{len(trials)} of {keys['trials']} trials are over"
    print(f"{over}; {folder / 'trials'} has the metrics of those that run", flush=True)
    always = [*_with_knn(fixed), f"seed={keys['seed']}"]
    jobs = Jobs(sampler, always, folder / "trials", _gpus(keys["jobs"]), picked)
    try:
        with closing(jobs):
            for trial in jobs.run(left, keys["jobs"], lambda: time.monotonic() < deadline):
                trials.append(trial)
                add_trial(folder / "trials.jsonl", trial)
                print(_line(trial, best_trial(trials)), flush=True)
                _check_any(trials)
    finally:
        best, fixed = best_trial(trials), _seeded(fixed, keys)
        command = None if best is None else best_command(fixed, best, picked)
        page = _write_page(folder, fixed, space, trials, command)
    _tell(best, command, page)
    return best


def _seeded(fixed: Sequence[str], keys: dict[str, Any]) -> list[str]:
    """Returns what is fixed with the seed of the trials, where that is not the one of every training."""
    return [*fixed, *([f"seed={keys['seed']}"] if keys["seed"] else [])]


def best_command(fixed: Sequence[str], trial: Trial, picked: Picked = lambda values: ()) -> str:
    """Returns the training with the values of a trial, for a shell."""
    return for_shell(["unlabeled", "train", *fixed, *picked(trial.values), *assignments(trial.values)])


def _checked(others: Sequence[str], keys: dict[str, Any]) -> tuple[list[str], Space, int | None, Picked]:
    """Returns what is fixed, the space, max_epochs and what is picked for a trial; checks all extremes.

    What is picked for own images is fixed where it is the same at every extreme, and else each trial's own: a search
    over methods gives each its views and its queue.
    """
    for key in OF_TRIALS:
        if any(each.lstrip("+").split("=")[0] == key for each in others):
            raise UserError(f"{key}: is no key of a trial; leave it out")
    if not {each.lstrip("+~").split("=")[0].split(".")[0] for each in others} & {"data", "experiment"}:
        raise UserError("data: nothing says what to train on; give data=PATH or experiment=digits")
    given, space = split(others)
    if not space:
        raise UserError('nothing is searched: give a key a range, as "optimizer.lr=tag(log,interval(0.01,1))"')
    first, *further = corners(space)
    fixed = _completed(given, first, print)
    for corner in further:
        same = _completed(given, corner, _quiet)
        fixed = [each for each in fixed if each in same]

    def picked(values: Mapping[str, Any]) -> list[str]:
        return [each for each in _completed(given, values, _quiet) if each not in fixed]

    place = str(Path(keys["run_dir"]) / "trials" / "0000")
    for corner in corners(space):
        trial = [*_with_knn(fixed), *picked(corner), *assignments(corner)]
        for each in trial:
            if each.startswith(PROCESSES) and not each.endswith(("=1", "=auto")):
                raise UserError(f"{each}: a trial is trained by one process; leave it out, jobs=2 trains two at once")
        config = composed("train", [*trial, f"run_dir={place}"])
        check_command(config, conf_folder() / "train.yaml")
        if config.online_knn is None:
            raise UserError("online_knn=null: a search is judged by it; leave it out")
    return fixed, space, _epochs(config), picked


def _epochs(config: DictConfig) -> int | None:
    """Returns the epochs of a trial, which ``max_steps`` may end earlier."""
    most: int | None = config.max_epochs
    if config.max_steps is None:
        return most
    from unlabeled.commands.build.run import build_splits  # here: it loads torch
    from unlabeled.data.order import batch_size_for

    images = len(build_splits(config).train)
    steps = images // (batch_size_for(config.batch_size, images) * config.get("accumulate", 1))
    of_steps = int(config.max_steps // max(1, steps))
    return of_steps if most is None else min(most, of_steps)


def _completed(given: Sequence[str], values: Mapping[str, Any], log: Callable[[str], None]) -> list[str]:
    """Returns what is given, and what is picked beside the values of a trial."""
    tried = assignments(values)
    return [each for each in completed([*given, *tried], log) if each not in tried]


def _quiet(line: str) -> None:
    """Says the picks of one method alone."""


def _with_knn(fixed: Sequence[str]) -> list[str]:
    """Scores come after every epoch, unless their interval is given."""
    given = any(each.split("=")[0] in ("online_knn", "online_knn.every_n_epochs") for each in fixed)
    return [*ALWAYS, *([] if given else ["online_knn.every_n_epochs=1"]), *fixed, ONE_PROCESS]


def _lock(folder: Path) -> "RunLock":
    from unlabeled.training.run_lock import RunLock

    return RunLock(folder)


def _open_folder(folder: Path, fixed: Sequence[str], space: Space, keys: dict[str, Any]) -> None:
    """Begins a search, or makes sure that the folder holds this one."""
    ranges = {key: list(each.values) if isinstance(each, Choices) else vars(each) for key, each in space.items()}
    now = {"fixed": list(fixed), "space": ranges, "seed": keys["seed"], "pruner": keys["pruner"]}
    path = folder / "search.json"
    if path.exists():
        differ = [name for name, value in _read_search(path).items() if value != now.get(name)]
        if differ:
            raise UserError(
                f"run_dir={folder}: holds another search ({', '.join(differ)} differ); give another run_dir"
            )
    make_folder(folder)
    write_atomic(path, json.dumps(now, indent=1) + "\n")


def _read_search(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(read_utf8(path)))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); move the folder away to begin the search anew") from error


def _gpus(jobs: int) -> list[str]:
    """Names of the GPUs that the jobs share out; empty without one, and for a single job, which takes what it likes."""
    if jobs == 1:
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each for each in named.split(",") if each.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _check_any(trials: Sequence[Trial]) -> None:
    if len(trials) == FAILURES and all(trial.state == "failed" for trial in trials):
        raise UserError(f"the first {FAILURES} trials failed: {trials[-1].reason}")


def _line(trial: Trial, best: Trial | None) -> str:
    values = " ".join(_shortened(trial.values))
    score = "" if trial.score is None else f" {trial.score:.2f} %"
    ending = f": {trial.reason}" if trial.reason else ""
    of = "" if best is None else f"   best {best.score:.2f} % (trial {best.number})"
    return f"trial {trial.number}  {trial.state}{score}  {values}  {trial.seconds:.0f} s{ending}{of}"


def _shortened(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


def _write_page(folder: Path, fixed: Sequence[str], space: Space, trials: Sequence[Trial], command: str | None) -> Path:
    from unlabeled.commands.tune.importance import importances
    from unlabeled.commands.tune.page import search_page

    write_atomic(folder / "index.html", search_page(fixed, space, trials, importances(space, trials), command))
    return folder / "index.html"


def _tell(best: Trial | None, command: str | None, page: Path) -> None:
    if best is None:
        print(f"no trial was trained to its end; what was tried is in {page}")
        return
    print(f"best: {best.score:.2f} % k-NN of held-out training images, trial {best.number}; all are in {page}")
    print(f"  {command}")
