"""Pages that scripts write, and what states version and date in several places."""

import json
import re
import tomllib
from pathlib import Path

import list_licences
import make_citing
import pytest
import yaml

import monai_extra_losses
from monai_extra_losses import losses

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_page_of_licences_is_as_the_installed_packages_say() -> None:
    page = list_licences.PAGE.read_text(encoding="utf-8")
    assert list_licences.page_of(page) == page


def test_another_licence_or_a_new_dependency_makes_the_page_of_licences_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    page = list_licences.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(list_licences, "licence_of", lambda name: "GPL-3.0-only")
    assert re.search(r"^\| `edt` \| [\d.]+ \| GPL-3.0-only \|", list_licences.page_of(page), re.M)
    monkeypatch.setattr(list_licences, "_installed", lambda name: None)
    assert list_licences.page_of(page) == page  # rows are kept of what is not installed


def test_every_dependency_is_in_the_page_of_licences() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    names = {re.split(r"[^\w.-]", line)[0] for line in lines} - {"monai-extra-losses"}
    assert names == set(re.findall(r"^\| `([\w.-]+)` \|", list_licences.PAGE.read_text(encoding="utf-8"), re.M))


def test_the_page_of_citations_is_as_the_docstrings_say() -> None:
    page = make_citing.PAGE.read_text(encoding="utf-8")
    assert make_citing.page() == page
    cited = set(re.findall(r"^\| \[`(\w+)`\]", page, re.M))
    assert {name for name in losses.__all__ if name.endswith("Loss")} <= cited


def test_another_reference_makes_the_page_of_citations_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    other = (losses.TopKLoss.__doc__ or "").replace("Wu et al. 2016", "Wu et al. 2017")
    monkeypatch.setattr(losses.TopKLoss, "__doc__", other)
    assert make_citing.page() != make_citing.PAGE.read_text(encoding="utf-8")


def test_version_licence_and_authors_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert CITATION["version"] == monai_extra_losses.__version__ == metadata["version"]
    assert CITATION["license"] == project["license"]
    assert CITATION["authors"] == project["authors"]
    assert CITATION["keywords"] == project["keywords"]
    assert not {"doi", "url", "repository", "repository-code"} & set(CITATION)  # there is none


def test_the_changelog_has_the_version_and_its_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*)\]", text, re.M)[0] == "Unreleased"
    assert f"\n## [{CITATION['version']}] - {CITATION['date-released']}\n" in text
