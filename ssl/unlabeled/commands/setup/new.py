"""``unlabeled new objective NAME``: three files that work, for an own objective, view, source or probe."""

import difflib
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from unlabeled.core.writing import write_atomic
from unlabeled.errors import UserError

KINDS = {"objective": "objective", "view": "views", "source": "data", "probe": "probe"}  # kind → folder in conf/
TRY = {
    "objective": "unlabeled train --config-dir=conf objective={name} backbone=resnet_thin views.size=16 max_epochs=5",
    "view": "unlabeled preview --config-dir=conf views={name}",
    "source": "unlabeled train --config-dir=conf data={name} data.path=FOLDER",
    "probe": "unlabeled evaluate run=outputs/NAME --config-dir=conf probe={name}",
}
USAGE = "unlabeled new objective|view|source|probe NAME"


def main(arguments: Sequence[str]) -> None:
    """Write the skeleton into the current folder and say how it is tried."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(f"{USAGE}\n\nWrites NAME.py, conf/…/NAME.yaml and test_NAME.py into this folder; all of it works.")
        return
    try:
        kind, name = _checked(arguments)
        written = write_skeleton(kind, name, Path.cwd())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"written: {', '.join(str(path.relative_to(Path.cwd())) for path in written)}")
    print(f"  python -m pytest {written[2].name}\n  {TRY[kind].format(name=name)}")


def _checked(arguments: Sequence[str]) -> tuple[str, str]:
    if len(arguments) != 2:
        raise UserError(f"{' '.join(arguments)}: give a kind and a name: {USAGE}")
    kind, name = arguments
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"(allowed: {', '.join(KINDS)})"
        raise UserError(f"{kind}: no such kind; {hint}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise UserError(f"{name}: give a name of small letters, digits and _ that no module of Python has")
    return kind, name


def write_skeleton(kind: str, name: str, folder: Path) -> list[Path]:
    """The module, its yaml and its test, in this order.

    Args:
        kind: of ``KINDS``.
        name: of the module and of the choice; small letters.
        folder: where they are written; the yaml goes below ``conf/``, as ``--config-dir=conf`` wants it.

    Raises:
        UserError: one of the files is there already; nothing is written then.
    """
    skeletons = Path(__file__).parent / "skeletons"
    paths = {
        skeletons / f"{kind}.py": folder / f"{name}.py",
        skeletons / f"{kind}.yaml": folder / "conf" / KINDS[kind] / f"{name}.yaml",
        skeletons / f"check_{kind}.py": folder / f"test_{name}.py",
    }
    there = [path for path in paths.values() if path.exists()]
    if there:
        raise UserError(f"{there[0]}: is there already; give another name, or remove it")
    for template, path in paths.items():
        write_atomic(path, _named(template.read_text(encoding="utf-8"), kind, name))
    return list(paths.values())


def _named(text: str, kind: str, name: str) -> str:
    text = text.replace(f"unlabeled.commands.setup.skeletons.{kind}", name)
    words = "".join(word.capitalize() for word in name.split("_"))
    return text.replace("skeleton", name).replace("Skeleton", words)
