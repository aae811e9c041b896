"""The tutorial runs from its first cell to its last, and its stored outputs are fit to be read by others.

`python tests/test_tutorial.py` runs it and stores new outputs.
"""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "tutorials" / "01_train_with_another_loss.ipynb"
LONGEST_OUTPUT = 99  # lines; MONAI's limit for a tutorial's cell
RUNS = ("dice_ce", "cross_entropy", "weighted")


# Commands whose output goes to a file run in the kernel, for a process takes seconds to start; others in the shell.
IN_PROCESS = r"""
import contextlib as _contextlib, re as _re, shlex as _shlex

def _system(line, _shell=get_ipython().system):
    from monai_extra_losses.cli import main
    words = " ".join(_shlex.split(get_ipython().var_expand(line, depth=1), posix=False))
    found = _re.fullmatch(r"monai-extra-losses ([^>|]+) > (\w+\.log) 2>&1 \|\| tail -n 5 \2", words)
    if found is None:
        return _shell(line)
    with open(found[2], "w") as log, _contextlib.redirect_stdout(log), _contextlib.redirect_stderr(log):
        try:
            main(_shlex.split(found[1]))
        except SystemExit as ended:
            assert ended.code == 0, ended.code

get_ipython().system = _system
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this Python, whatever kernels and settings the user has."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tests",
        "language": "python",
    }
    folder = tmp_path / "jupyter" / "kernels" / "tests"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return "tests"


@pytest.mark.parametrize("epochs", [1, pytest.param(None, id="as it stands", marks=pytest.mark.slow)])
def test_every_cell_runs(epochs: int | None, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read()
    if epochs is not None:
        shorten(notebook, epochs)
        notebook.cells.insert(1, nbformat.v4.new_code_cell(IN_PROCESS))
    work = tmp_path / "work"
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(work))  # so that the tutorial leaves its files there
    options: dict[str, Any] = {"resources": {"metadata": {"path": str(tmp_path)}}}
    NotebookClient(notebook, kernel_name=kernel, timeout=600, **options).execute()

    (root,) = work.iterdir()
    for run in RUNS:
        results = root / "runs" / run / "eval"
        assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")
        cases = table(results / "cases.csv")
        validated = 4 if epochs is None else 2
        assert len(list((results / "overlays").glob("*.png"))) == len({row["case"] for row in cases}) == validated
        summary = {row["label"]: row for row in table(results / "summary.csv")}
        assert list(summary) == ["organ", "lesion", "mean"]
        if epochs is None:
            assert float(summary["organ"]["dice_mean"]) > 0.8
            # what the text says of the pictures
            assert (float(summary["lesion"]["dice_mean"]) > 0.2) == (run != "cross_entropy")
    assert (root / "segmentations" / "phantom_test_000_seg.nii.gz").exists()
    text = "\n".join(text_of(cell) for cell in notebook.cells)
    assert "same shape and affine: True" in text
    assert [pictures_of(cell) for cell in notebook.cells if pictures_of(cell)] == [1] * 5


def test_stored_outputs_are_complete_and_in_order() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(pictures_of(cell) for cell in code) == 5
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert max(len(text_of(cell).splitlines()) for cell in code) <= LONGEST_OUTPUT


def test_stored_outputs_tell_nothing_of_the_machine() -> None:
    for cell in read().cells:
        text = text_of(cell)
        assert not re.search(r"(?<![\w.~-])(/[\w.~-]+){2,}|\b[A-Za-z]:\\", text), text
        assert not re.search(r"warning|GHSA|\d s\b", text, re.IGNORECASE), text
        assert not any(output.get("name") == "stderr" for output in cell.get("outputs", []))
        assert "execution" not in cell.metadata  # times of day


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(cell.source for cell in read().cells))
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def shorten(notebook: nbformat.NotebookNode, epochs: int) -> None:
    """Set `max_epochs`, which MONAI's own check of tutorials replaces too, and half the cases."""
    changed = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for name, number in (("max_epochs = ", epochs), ("num_cases=", 10)):
                cell.source, count = re.subn(rf"\b{name}\d+", f"{name}{number}", cell.source)
                changed += count
    assert changed == 2


def text_of(cell: nbformat.NotebookNode) -> str:
    outputs = cell.get("outputs", [])
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def pictures_of(cell: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    fresh = read()
    NotebookClient(fresh, kernel_name="python3", record_timing=False).execute()
    nbformat.write(fresh, NOTEBOOK)
