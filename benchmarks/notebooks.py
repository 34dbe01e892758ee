"""Runs the notebooks of docs/notebooks/, keeps their outputs and writes a page of each.

python -m benchmarks.notebooks [NAME …]
"""

import base64
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
LONGEST = 60  # lines of an output on a page
COMMAND = re.compile(r"\bunlabeled\.\w+\(|^!unlabeled", re.MULTILINE)
ESCAPE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")  # of a terminal
NOTE = "<!-- Written by `python -m benchmarks.notebooks` from the notebook beside it. -->"


def executed(name: str, folder: Path) -> Any:
    """Runs a notebook in a folder, in a kernel of its own, and returns it with its outputs.

    Args:
        name: of the file in ``FOLDER``, without its ending.
        folder: where its files go.

    Raises:
        CellExecutionError: a cell has failed.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    place = {"metadata": {"path": str(folder)}}
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"  # where the command unlabeled is
    try:
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    finally:
        os.environ["PATH"] = before
    return notebook


def commands(notebook: Any) -> int:
    """Counts the calls of this project in the cells."""
    return sum(len(COMMAND.findall(cell.source)) for cell in notebook.cells if cell.cell_type == "code")


def tidy(notebook: Any, folder: Path) -> None:
    """Keeps of each line what a terminal would show at its end, and hides the name of the folder."""
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
        if cell.cell_type != "code":
            continue
        printed = "".join(each.text for each in cell.outputs if each.get("name") == "stdout")
        others = [each for each in cell.outputs if each.output_type != "stream"]
        lines = [ESCAPE.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in printed.split("\n")]
        text = "\n".join(line for line in lines if line.strip())
        cell.outputs = ([nbformat.v4.new_output("stream", name="stdout", text=f"{text}\n")] if text else []) + others  # type: ignore[no-untyped-call]
        for output in cell.outputs:
            for holder in (output, output.get("data", {})):
                for key in ("text", "text/plain", "text/markdown"):
                    if key in holder:
                        holder[key] = holder[key].replace(str(folder), "/home/me")


def page(notebook: Any) -> str:
    """Makes a page of a notebook with outputs."""
    parts = [NOTE]
    pictures = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        language = "bash" if cell.source.startswith("!") else "python"
        parts.append(f"```{language}\n{cell.source.removeprefix('!')}\n```")
        for kind, content in _shown(cell):
            pictures += kind == "image"
            parts.append(f"![output](NAME_{pictures}.png)" if kind == "image" else content)
    return "\n\n".join(parts) + "\n"


def pictures(notebook: Any) -> list[bytes]:
    """Returns the pictures of a page, in their order."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [base64.b64decode(content) for cell in cells for kind, content in _shown(cell) if kind == "image"]


def _shown(cell: Any) -> Iterator[tuple[str, str]]:
    """Yields each output: a picture, Markdown, or text as it stands."""
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            yield "image", data["image/png"]
        elif "text/markdown" in data:
            yield "markdown", data["text/markdown"]
        else:
            lines = (output.get("text") or data.get("text/plain", "")).rstrip().splitlines()
            more = [f"… {len(lines) - LONGEST} lines more"] if len(lines) > LONGEST else []
            fence = "````" if any("```" in line for line in lines) else "```"
            yield "text", "\n".join([f"{fence}text", *lines[:LONGEST], *more, fence])


def main() -> None:
    """Runs all notebooks, or those that are named."""
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as place:
            notebook = executed(name, Path(place))
            tidy(notebook, Path(place))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")  # type: ignore[no-untyped-call]
        (FOLDER / f"{name}.md").write_text(page(notebook).replace("NAME_", f"{name}_"))
        for number, picture in enumerate(pictures(notebook), 1):
            (FOLDER / f"{name}_{number}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
