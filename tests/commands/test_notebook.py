"""A notebook that trains, loads and evaluates, executed as Jupyter does."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ENVIRONMENT

CELLS = [
    "import unlabeled",
    'run = unlabeled.train(experiment="digits", max_epochs=2, batch_size=64, backbone={"width": 0.125},\n'
    '    online_knn=None, pictures=None, num_workers=0, log_every_n_steps=5, probe="knn", '
    '    overrides=["probe.knn.k=[20]"], trainer={"accelerator": "cpu"}, out="outputs/notebook")\nlen(run.metrics)',
    'model = unlabeled.load("outputs/notebook")\nmodel.num_features',
    'vectors = unlabeled.embed(model, "digits", num_workers=0)\nvectors.x.shape[0], vectors.neighbours(3)[0].shape[1]',
    'unlabeled.evaluate(run, probe="knn", overrides=["probe.knn.k=[20]"], num_workers=0)',
]


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_trains_with_a_progress_line_and_shows_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in CELLS])  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    text = "".join(output.text for output in outputs[1] if output.output_type == "stream")
    assert text.count("\r") >= 42 // 5  # one line that is written over, and no line an epoch
    assert "42/42" in text.replace(" ", "")
    assert "top-1" not in text
    results = [
        output.data["text/plain"] for cell in outputs for output in cell if output.output_type == "execute_result"
    ]
    assert int(results[0]) > 2
    assert results[1] == "64"
    assert results[2] == "(1797, 3)"
    assert results[3].startswith("| top-1, %")
    assert "text/markdown" in outputs[4][-1].data
