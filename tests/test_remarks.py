"""What is said of other libraries names a version, and is printed by a script that runs them."""

import csv
import importlib.util
import math
import re
from pathlib import Path

import monai
import pytest
import remarks
import yaml
from public_code.equalities import EQUALITIES

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "monai_extra_losses/losses").glob("*.py"))
PAGES_WITHOUT_KEY = {"cosine_similarity", "kl_divergence", "poisson"}


def table(path: str) -> list[dict[str, str]]:
    with (ROOT / path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TRAPS = table("docs/losses/public_code.csv")
EQUAL = table("benchmarks/equalities.csv")


def skip_without(module: str, version: str, distribution: str) -> None:
    if not remarks.is_installed(module):
        pytest.skip(f"install {distribution} {version} to run this test.")
    if remarks.version_of(distribution) != version:
        pytest.skip(f"the table is of {distribution} {version}: write it anew with benchmarks/remarks.py.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_remark_on_another_library_names_its_version(path: Path) -> None:
    for library in ("kornia", "Keras", "PyMIC"):
        mentions = re.findall(rf"{library}.?.?\w*", path.read_text())
        assert all(re.match(rf"{library} \d", mention) for mention in mentions), mentions


def test_the_script_prints_each_library_or_says_that_it_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    remarks.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"monai {monai.__version__}"
    assert "  shapes of reduction='none' and 'sum': [(), ()]" in lines
    assert "  change with another third class: 0" in lines
    for module, distribution, _ in remarks.REMARKS:
        installed = importlib.util.find_spec(module.partition(".")[0]) is not None
        assert any(line.startswith(f"{distribution}: left out: ") for line in lines) != installed


@pytest.mark.parametrize(("library", "distribution", "module"), [entry[:3] for entry in remarks.TRAPS])
def test_the_traps_are_what_the_library_gives(library: str, distribution: str, module: str) -> None:
    rows = [row for row in TRAPS if row["library"] == library]
    assert rows
    skip_without(module, rows[0]["version"], distribution)
    found = remarks.trap_rows(library)
    assert len(found) == len(rows)
    for row in found:
        same = [old for old in rows if all(old[column] == row[column] for column in remarks.COLUMNS[:6])]
        assert any(all(close(old[column], row[column]) for column in ("theirs", "right")) for old in same), row


def close(old: str, new: str) -> bool:
    """Whether two values are the same word, or numbers that agree in three digits."""
    if old == new:
        return True
    try:
        return math.isclose(float(old), float(new), rel_tol=1e-3)
    except ValueError:
        return False


def test_each_trap_is_of_a_loss_says_what_it_is_and_shows_two_values() -> None:
    pages = set(yaml.safe_load((ROOT / "configs/losses.yaml").read_text())["losses"]) | PAGES_WITHOUT_KEY
    assert {row["loss"] for row in TRAPS} <= pages
    for row in TRAPS:
        assert re.match(r"(Error|Meaning|Default): .*\.$", row["trap"]), row
        assert row["case"]
        assert not close(row["theirs"], row["right"]), row
    assert {row["library"] for row in TRAPS} == {entry[0] for entry in remarks.TRAPS}


@pytest.mark.parametrize(("module", "distribution"), [entry[:2] for entry in EQUALITIES])
def test_what_is_said_to_be_equal_is(module: str, distribution: str) -> None:
    rows = [row for row in EQUAL if row["library"] == distribution]
    assert rows
    assert all(float(row["difference"]) < 1e-6 for row in rows)
    skip_without(module, rows[0]["version"], distribution)
    found = remarks.equality_rows(distribution)
    assert [(row["theirs"], row["ours"]) for row in found] == [(row["theirs"], row["ours"]) for row in rows]
    assert all(float(row["difference"]) < 1e-6 for row in found)


def test_a_table_is_not_written_where_a_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remarks, "is_installed", lambda module: not module.startswith("keras"))
    with pytest.raises(SystemExit):
        remarks.main(["--csv", str(tmp_path / "table.csv")])
    assert "expected every library, missing keras" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_for_those_who_migrate_states_these_equalities() -> None:
    page = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    for row in EQUAL:
        assert f"| `{row['theirs']}` | `{row['ours']}` |\n" in page, row
    for library, version in {(row["library"], row["version"]) for row in EQUAL}:
        assert re.search(rf"{remarks.NAMES[library]} {re.escape(version)}\b", page), library
