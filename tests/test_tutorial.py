"""The tutorials run from their first cell to their last, and their stored outputs are fit to be read by others.

`python tests/test_tutorial.py` runs them and stores new outputs; with the beginning of a name, such as 02, one of them.
"""

import csv
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "tutorials"
LONGEST_OUTPUT = 99  # lines; MONAI's limit for a tutorial's cell
LIMIT = 900  # seconds for the cells of a notebook, which take about two minutes on an idle core


# Commands whose output goes to a file, and imports, run in the kernel, for a process takes seconds to start; others in
# the shell.
IN_PROCESS = r"""
import contextlib as _contextlib, re as _re, shlex as _shlex

def _system(line, _shell=get_ipython().system):
    from monai_extra_losses.cli import main
    words = " ".join(_shlex.split(get_ipython().var_expand(line, depth=1), posix=False))
    if imports := _re.match(r'python -c "(import [\w, ]+)" \|\| pip install', words):
        return exec(imports[1])
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


@dataclass(frozen=True)
class Ran:
    """A notebook that has run.

    Attributes:
        root: the folder that it wrote into.
        text: what its cells printed.
        whole: whether it ran as it stands.
    """

    root: Path
    text: str
    whole: bool

    def results_of(self, run: str) -> Path:
        """The folder of an evaluation, with curves and a picture of each case."""
        results = self.root / "runs" / run / "eval"
        assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")
        validated = {row["case"] for row in table(results / "cases.csv")}
        assert len(list((results / "overlays").glob("*.png"))) == len(validated) == (4 if self.whole else 2)
        return results

    def rows(self, name: str) -> list[list[float]]:
        """The numbers of each printed line that has nothing else behind a name."""
        lines = re.findall(rf"^{re.escape(name)}((?: +\d+\.\d+)+)$", self.text, re.M)
        return [[float(number) for number in line.split()] for line in lines]


def check_another_loss(ran: Ran) -> None:
    for run in ("dice_ce", "cross_entropy", "weighted"):
        summary = {row["label"]: row for row in table(ran.results_of(run) / "summary.csv")}
        assert list(summary) == ["organ", "lesion", "mean"]
        if ran.whole:
            assert float(summary["organ"]["dice_mean"]) > 0.8
            # what the text says of the pictures
            assert (float(summary["lesion"]["dice_mean"]) > 0.2) == (run != "cross_entropy")
    assert (ran.root / "segmentations" / "phantom_test_000_seg.nii.gz").exists()
    assert "same shape and affine: True" in ran.text


def check_small_lesions(ran: Ran) -> None:
    """What the text says of costs, shares, gradients and the two trainings."""
    losses = ("cross_entropy", "focal", "dice", "focal_tversky", "dice_ce", "component_dice_ce", "blob_dice_ce")
    costs, shares, at_first, later = ({name: ran.rows(name)[i] for name in losses} for i in range(4))
    ((by_volume,),) = ran.rows("(volume)")
    for name, (undecided, nothing, large_only, _, _) in costs.items():
        by_component = name.startswith(("component", "blob"))
        assert (large_only < 0.12 * nothing) == (not by_component and name != "focal_tversky")
        assert (large_only > nothing / 3) == by_component
        assert (nothing < undecided / 3) == (name == "cross_entropy")
        assert (shares[name][0] > 2 * by_volume) == by_component
        assert (at_first[name][0] > 90) == (name not in ("dice", "focal_tversky"))
    assert shares["cross_entropy"] == shares["focal"] == [by_volume]
    assert later["dice"][0] > 90 > later["cross_entropy"][2] > 50 > later["component_dice_ce"][2]
    assert later["component_dice_ce"][2] > later["dice_ce"][2] > 10 > 1 > later["dice"][2]

    counted = {}
    for run in ("dice_ce", "component_dice_ce"):
        results = ran.results_of(run)
        lesions = table(results / "lesions.csv")
        assert len(lesions) == (32 if ran.whole else 16)
        invented = [float(row["false_positive_lesions"]) for row in table(results / "cases.csv")]
        counted[run] = sum(row["found"] == "1" for row in lesions), sum(invented)
    if ran.whole:
        found, invented = zip(*counted.values(), strict=True)
        assert found[0] < found[1]
        assert invented[0] < invented[1]


def check_own_loss(ran: Ran) -> None:
    for run in ("plain", "own"):
        assert (ran.root / "runs" / run / "models" / "model.pt").exists()
    named = r"(?:plain|half ignored|masked|weights of 1 and 2|order 1|order 300)"
    equal = re.findall(rf"^{named} ([\d.]+), [a-z -]+ ([\d.]+)$", ran.text, re.M)
    assert len(equal) == 7
    assert all(float(ours) == pytest.approx(float(other), abs=1.1e-5) for ours, other in equal)
    assert re.search(r"^half precision: nan +float32: 0\.\d+$", ran.text, re.M)
    ((plain, ours),) = re.findall(r"plain ([\d.]+), ours ([\d.]+) times", ran.text)
    assert float(ours) < 1.5 < 5 < float(plain)
    assert float(re.findall(r"reference: (\S+)", ran.text)[0]) < 1e-8
    assert len(re.findall(r"Loss True$", ran.text, re.M)) == 3  # gradcheck
    assert "\nproblem" not in ran.text  # doctor


@dataclass(frozen=True)
class Tutorial:
    """A notebook, how many of its numbers a short run changes, its pictures, and what has to hold once it has run."""

    file: str
    shortened: int
    pictures: int
    check: Callable[[Ran], None]

    def read(self) -> nbformat.NotebookNode:
        return nbformat.read(FOLDER / self.file, as_version=4)


TUTORIALS = {
    "01": Tutorial("01_train_with_another_loss.ipynb", 2, 5, check_another_loss),
    "02": Tutorial("02_which_loss_for_small_lesions.ipynb", 2, 5, check_small_lesions),
    "03": Tutorial("03_write_your_own_loss.ipynb", 2, 1, check_own_loss),
}
every_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS.values(), ids=TUTORIALS)


def test_every_notebook_is_tested() -> None:
    assert sorted(tutorial.file for tutorial in TUTORIALS.values()) == sorted(p.name for p in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("epochs", [1, pytest.param(None, id="as it stands", marks=pytest.mark.slow)])
@every_tutorial
def test_every_cell_runs(
    tutorial: Tutorial, epochs: int | None, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = tutorial.read()
    if epochs is not None:
        assert shorten(notebook, epochs) == tutorial.shortened
        notebook.cells.insert(1, nbformat.v4.new_code_cell(IN_PROCESS))
    work = tmp_path / "work"
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(work))  # so that the tutorial leaves its files there
    options: dict[str, Any] = {"resources": {"metadata": {"path": str(tmp_path)}}}
    end = time.monotonic() + LIMIT
    NotebookClient(
        notebook,
        kernel_name=kernel,
        timeout_func=lambda cell: max(1, end - time.monotonic()),  # it takes 0 for no limit
        **options,
    ).execute()

    (root,) = work.iterdir()
    tutorial.check(Ran(root, "\n".join(text_of(cell) for cell in notebook.cells), epochs is None))
    assert [pictures_of(cell) for cell in notebook.cells if pictures_of(cell)] == [1] * tutorial.pictures


@every_tutorial
def test_stored_outputs_are_complete_and_in_order(tutorial: Tutorial) -> None:
    code = [cell for cell in tutorial.read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(pictures_of(cell) for cell in code) == tutorial.pictures
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert max(len(text_of(cell).splitlines()) for cell in code) <= LONGEST_OUTPUT


@every_tutorial
def test_stored_outputs_tell_nothing_of_the_machine(tutorial: Tutorial) -> None:
    for cell in tutorial.read().cells:
        text = text_of(cell)
        assert not re.search(r"(?<![\w.~-])(/[\w.~-]+){2,}|\b[A-Za-z]:\\", text), text
        assert not re.search(r"Warning|WARNING|GHSA|\d s\b", text), text  # "warning" is a word of doctor's
        assert not any(output.get("name") == "stderr" for output in cell.get("outputs", []))
        assert "execution" not in cell.metadata  # times of day


@every_tutorial
def test_links_lead_somewhere(tutorial: Tutorial) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(cell.source for cell in tutorial.read().cells))
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []


def shorten(notebook: nbformat.NotebookNode, epochs: int) -> int:
    """Set `max_epochs`, which MONAI's own check of tutorials replaces too, and half the cases; return how often."""
    changed = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for name, number in (("max_epochs", epochs), ("num_cases", 10)):
                cell.source, count = re.subn(rf"\b({name} ?= ?)\d+", rf"\g<1>{number}", cell.source)
                changed += count
    return changed


def text_of(cell: nbformat.NotebookNode) -> str:
    outputs = cell.get("outputs", [])
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def pictures_of(cell: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    for tutorial in TUTORIALS.values():
        if tutorial.file.startswith(sys.argv[1] if len(sys.argv) > 1 else ""):
            fresh = tutorial.read()
            NotebookClient(fresh, kernel_name="python3", record_timing=False).execute()
            nbformat.write(fresh, FOLDER / tutorial.file)
