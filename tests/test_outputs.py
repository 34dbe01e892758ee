"""What cannot be written is one line with its path, before the work; what was computed is kept somewhere else."""

import ast
import errno
import json
import os
import runpy
import stat
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.small import composed, small_run
from unlabeled.commands.build.evaluation import build_evaluation
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.config import one_line_errors
from unlabeled.core import writing
from unlabeled.core.writing import (
    Unwritable,
    check_file,
    check_folder,
    kept_anyway,
    save_picture,
    save_plot,
    save_safetensors,
    save_tensors,
    write_atomic,
)
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.training.run_folder import FILES, FOLDERS, check_run_folder
from unlabeled.weights import read_checkpoint

SOURCES = sorted((ROOT / "ssl" / "unlabeled").rglob("*.py"))


def a_file(folder: Path) -> Path:
    (folder / "taken").write_text("keep me")
    return folder / "taken"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "below"


def a_device(folder: Path) -> Path:
    return Path("/dev/null")


def a_dangling_link(folder: Path) -> Path:
    (folder / "link").symlink_to("/nowhere/at/all")
    return folder / "link"


def a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def unwritable(folder: Path) -> Path:
    return Path("/proc/new")  # root may write anywhere else


def too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


def a_folder(folder: Path) -> Path:
    (folder / "folder").mkdir()
    return folder / "folder"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


Obstacle = Callable[[Path], Path]
ANYWHERE: list[Obstacle] = [below_a_file, a_device, a_dangling_link, a_loop, unwritable, too_long]
FOR_FOLDERS: list[Obstacle] = [*ANYWHERE, a_file, a_pipe]
FOR_FILES: list[Obstacle] = [*ANYWHERE, a_folder, a_pipe]

IN_A_FOLDER = {
    "train.py": ("run_dir=",),
    "eval_linear.py": ("run=x", "report_dir="),
    "compare": ("compare=[x,y]", "report_dir="),
    "ensemble": ("ensemble=[x,y]", "report_dir="),
    "unlabeled.commands.inspect": ("out=",),
    "unlabeled.commands.setup.pack": ("data=digits", "out="),
    "unlabeled.commands.export": ("run=x", "to=timm", "out="),
    "unlabeled.commands.represent": ("run=x", "out="),
}
IN_A_FILE = {
    "unlabeled.commands.evaluate.embed": ("run=x", "out="),
    "unlabeled.commands.table": ("x", "out="),
    "unlabeled.commands.saliency": ("out=",),
}


def run(command: str) -> None:
    if command.startswith("unlabeled."):
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / ("train.py" if command == "train.py" else "eval_linear.py")), run_name="__main__")


@pytest.mark.parametrize(
    ("command", "obstacle"),
    [(command, each) for command in IN_A_FOLDER for each in FOR_FOLDERS]
    + [(command, each) for command in IN_A_FILE for each in FOR_FILES],
)
def test_a_command_says_in_one_line_before_it_works_that_its_output_cannot_be_written(
    command: str, obstacle: Obstacle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = obstacle(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    *others, key = (IN_A_FOLDER | IN_A_FILE)[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, *others, f"{key}{path}"])
    with pytest.raises(SystemExit) as stopped:
        run(command)
    printed = capfd.readouterr().err
    assert (stopped.value.code, len(printed.splitlines())) == (2, 1), printed
    assert f"{key}{path}: " in printed
    assert "give the name of a f" in printed
    assert sorted(tmp_path.rglob("*")) == before
    if path.name == "taken":
        assert path.read_text() == "keep me"


def _figure() -> "object":
    from unlabeled.pages.plots import new_figure

    return new_figure(1.0)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_atomic(path, "content"),
    "bytes": lambda path: write_atomic(path, b"content"),
    "picture": lambda path: save_picture(path, Image.new("RGB", (4, 4))),
    "plot": lambda path: save_plot(path, _figure()),  # type: ignore[arg-type]
    "tensors": lambda path: save_tensors(path, {"a": torch.arange(10)}),
    "safetensors": lambda path: save_safetensors(path, {"a": torch.arange(10)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_makes_its_folder_follows_links_and_leaves_nothing_but_the_file(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / "new" / "deep" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "new" / "deep" / "file")
    before = (tmp_path / "new" / "deep" / "file").read_bytes()
    (tmp_path / "new" / "deep" / "file").write_text("old")
    WRITERS[kind](tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == before
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["file"]
    assert stat.S_IMODE((tmp_path / "link").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    os.umask(before := os.umask(0))
    return before


def test_a_name_that_is_not_utf_8_ends_no_writing(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", json.dumps({"name": os.fsdecode(b"caf\xe9.png")}, ensure_ascii=False))
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == {"name": "caf\udce9.png"}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("obstacle", FOR_FILES)
def test_every_writer_is_refused_in_one_line_that_has_the_path(kind: str, obstacle: Obstacle, tmp_path: Path) -> None:
    path = obstacle(tmp_path)
    with pytest.raises(Unwritable) as refused:
        WRITERS[kind](path)
    assert str(refused.value).startswith(f"{path}: cannot be written (")
    assert len(str(refused.value).splitlines()) == 1
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(Unwritable):
        check_file("out", path)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_an_error_at_any_moment_of_writing_leaves_the_old_file_and_no_other(
    kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("old")

    def fails(*arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number))

    for place in ("os.replace", "_sync", "Path.touch"):
        with monkeypatch.context() as patched:
            patched.setattr(f"unlabeled.core.writing.{place}", fails)
            with pytest.raises(Unwritable, match=os.strerror(number)):
                WRITERS[kind](tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("kind", ["text", "bytes", "picture", "plot", "tensors"])  # safetensors replaces even a device
def test_a_disk_that_is_full_is_said_so_by_every_writer(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_target", lambda path: tmp_path / "file")
    monkeypatch.setattr(Path, "touch", lambda path, exist_ok: path.symlink_to("/dev/full"))
    with pytest.raises(Unwritable, match="No space left on device"):
        WRITERS[kind](tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_check_leaves_nothing_and_knows_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder("out", tmp_path / "a" / "b", ["x", "y"])
    check_file("out", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []

    def full(**keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("unlabeled.core.writing.tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=r"^out=.*/a: No space left on device; give the name of a folder"):
        check_folder("out", tmp_path / "a")


def test_what_was_computed_goes_to_a_temporary_folder_and_the_line_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    out = a_file(tmp_path)

    def write(folder: Path) -> None:
        write_atomic(folder / "numbers.json", json.dumps([0.25]))

    with pytest.raises(Unwritable) as refused:
        kept_anyway(out, write)
    (elsewhere,) = (tmp_path / "temporary").iterdir()
    assert str(refused.value).endswith(f"; what was computed is in {elsewhere}")
    assert json.loads((elsewhere / "numbers.json").read_text()) == [0.25]
    assert kept_anyway(tmp_path / "fine", lambda folder: 7) == 7


def full_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From now on no file can be written below a folder, and temporary ones go to the folder that is returned."""
    elsewhere, real = folder.parent / "temporary", writing._sync
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def sync(path: Path) -> None:
        if folder in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr("unlabeled.core.writing._sync", sync)
    return elsewhere


def test_a_report_that_cannot_be_written_at_the_end_is_kept_elsewhere_and_its_numbers_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = ["data=digits", "data.image_size=8", "max_steps=1", "num_workers=0", "cache_gib=0"]
    config = small_run("simclr", tmp_path / "run", *digits)
    resolved = open_run(config)
    with closing(build_run(config, resolved)) as run:
        run.fit(resolved)
    elsewhere = full_below(tmp_path / "run" / "report", monkeypatch)
    judged = small_run("simclr", tmp_path / "run", *digits, "probe=knn", "probe.knn.k=[20]")
    judged.probe = composed("probe=knn", "probe.knn.k=[20]").probe
    evaluation = build_evaluation(judged, run.data, "cpu")
    with pytest.raises(Unwritable, match=r"No space left on device\); what was computed is in ") as refused:
        evaluate(evaluation, read_checkpoint(run.checkpoint), tmp_path / "run" / "report", "the command")
    (folder,) = elsewhere.iterdir()
    assert str(refused.value).endswith(str(folder))
    rows = json.loads((folder / "results.json").read_text())["rows"]
    top1 = next(row["top1"] for row in rows if row["features"] == "pretrained")
    assert f"{top1:.2f}" in capsys.readouterr().out
    assert {"report.md", "report.html", "predictions.safetensors"} <= {path.name for path in folder.iterdir()}


def test_what_inspect_found_is_kept_elsewhere_where_it_cannot_be_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number * 80, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    elsewhere = full_below(tmp_path / "out", monkeypatch)
    given = ["data=folder", f"data.path={tmp_path / 'images'}", "data.image_size=8", "num_workers=0"]
    monkeypatch.setattr(sys, "argv", ["inspect", *given, f"out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as stopped:
        run("unlabeled.commands.inspect")
    line = capfd.readouterr().err
    (folder,) = elsewhere.iterdir()
    assert stopped.value.code == 2
    assert line.endswith(f"what was computed is in {folder}\n")
    assert json.loads((folder / "inspect.json").read_text())["splits"]["train"]["decoded"] == 3


def test_what_a_library_cannot_write_by_itself_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--multirun", "seed=0,1", f"hydra.sweep.dir={a_file(tmp_path)}"])
    with pytest.raises(SystemExit) as stopped:
        run("train.py")
    assert stopped.value.code == 2
    assert capfd.readouterr().err == f"error: {tmp_path / 'taken'}: File exists\n"


def test_a_full_disk_that_a_library_meets_is_one_line_and_any_other_error_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit), one_line_errors(ROOT / "conf", "train"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert capsys.readouterr().err == "error: No space left on device: make room and give the same command again\n"
    with pytest.raises(OSError, match="something else"), one_line_errors(ROOT / "conf", "train"):
        raise OSError("something else")


@pytest.mark.parametrize("name", [*FILES, *(f"{folder}/{file}" for folder, files in FOLDERS.items() for file in files)])
def test_a_folder_where_a_run_writes_a_file_is_found_before_it_begins(name: str, tmp_path: Path) -> None:
    check_run_folder(tmp_path / "new")
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^run_dir=.*{Path(name).name} is a folder; give the name of a folder that"):
        check_run_folder(tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_run_makes_a_folder_is_found_before_it_begins(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"^run_dir=.*{name} is a file; give the name of a folder that"):
        check_run_folder(tmp_path)


# Who opens for writing besides writing.py, and why
OWN = {
    "checkpoints.py",  # keeps the state before, and is written by all processes together
    "run_lock.py",  # must fail where a file is there
    "loggers.py",  # a line of metrics.csv
    "saliency.py",  # a file that is mapped
    "formats.py",  # what replacing gives, written a part at a time
    "shard.py",  # likewise, a member at a time
    "part_file.py",  # goes on where it was
}


def writes(path: Path) -> list[str]:
    """Calls that open a file for writing, by their names and modes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        of_os = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "os"
        if name in ("write_text", "write_bytes", "mkdir") or (of_os and name in ("replace", "rename")):
            found.append(name)
        if name == "open" and any(set(text) <= set("rwaxbt+") and set(text) & set("wax") for text in texts):
            found.append(name)
    return found


def test_files_are_opened_for_writing_at_one_place() -> None:
    others = [path for path in SOURCES if path.name not in {*OWN, "writing.py"} and path.parent.name != "skeletons"]
    elsewhere = {path.name: writes(path) for path in others}
    found = {name: calls for name, calls in elsewhere.items() if calls}
    assert found == {"export.py": ["mkdir", "rename", "rename"]}  # a whole folder, put in place at the end
