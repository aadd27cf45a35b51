"""docs/quickstart.ipynb runs as it stands, on real digits."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


def test_the_notebook_runs_and_shows_what_it_says(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert all(stored[1:]), "It is stored with what it shows."
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert printed[1].startswith("12 trainings, 32 epochs, 90.0% of 50,200 weights")
    # Of the baseline a live line and its own, of the run two and one a round.
    lines = printed[2].splitlines() + [output for output in cells[2].outputs if output.output_type == "display_data"]
    assert len(lines) <= 20 and "last training   sparsity 90.0%" in printed[2]
    (shown,) = cells[3].outputs
    assert "90.0% of the prunable weights are gone, and the validation accuracy is 9" in shown["data"]["text/html"]
    assert printed[4] == printed[6] == "90.00% of the prunable weights are zero.\n"
    assert {path.name for path in tmp_path.iterdir()} == {"pruned.tflite", "pruned.keras", "pruned.html"}
