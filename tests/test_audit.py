"""`make audit` without a network: what is asked, and what is made of the answer."""

import datetime
import subprocess
from pathlib import Path
from typing import Any

import audit
import pytest

KNOWN = {"GHSA-1": {"package": "torch_geo", "reason": "no such file is read", "date": datetime.date(2026, 1, 31)}}
ASKED = ["torch.geo==1.0", "numpy==2.0"]
FOUND = {"id": "PYSEC-7", "aliases": ["GHSA-1"], "fix_versions": ["1.1"]}


def answer(*found: dict[str, Any], **numpy: Any) -> dict[str, Any]:
    torch_geo = {"name": "torch-geo", "version": "1.0", "vulns": list(found)}
    return {"dependencies": [torch_geo, {"name": "numpy", "version": "2.0", **(numpy or {"vulns": []})}]}


def test_what_was_looked_into_passes_by_its_alias_for_its_package() -> None:
    assert audit.verdict(answer(), KNOWN, ASKED) == []
    assert audit.verdict(answer(FOUND), KNOWN, ASKED) == []
    for other in (answer({**FOUND, "aliases": []}), answer(vulns=[FOUND])):
        (line,) = audit.verdict(other, KNOWN, ASKED)
        assert "PYSEC-7, fixed in 1.1; take a version without it, or say in reviewed_vulnerabilities.toml why" in line


def test_what_was_not_looked_up_is_not_without_vulnerabilities() -> None:
    """pip-audit prints "No known vulnerabilities found", and ends with 0, where PyPI does not know a package."""
    (line,) = audit.verdict(answer(skip_reason="Dependency not found on PyPI"), KNOWN, ASKED)
    assert line == "numpy==2.0: expected an answer of the vulnerability service, got: Dependency not found on PyPI"
    (line,) = audit.verdict({"dependencies": answer()["dependencies"][:1]}, KNOWN, ASKED)
    assert line == "numpy==2.0: expected an answer of the vulnerability service, got: nothing"


@pytest.mark.parametrize("output", ["", "[]", "{}", "No network"])
def test_a_service_that_cannot_be_reached_is_a_sentence(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    errors = "Traceback\nrequests.exceptions.ConnectionError: Failed to resolve 'pypi.org'\n"
    ended = subprocess.CompletedProcess([], 1, output, errors)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(SystemExit, match=r"^Expected an answer of the vulnerability service, got: requests.*resolve"):
        audit.main()


def test_every_proven_version_is_asked_about_as_it_stands() -> None:
    lines = (audit.ROOT / "constraints.txt").read_text().splitlines()
    assert audit.requirements() == [line for line in lines if line and not line.startswith("#")]
    words = audit.command(Path("proven.txt"))
    assert words[1:5] == ["-m", "pip_audit", "--requirement", "proven.txt"]
    assert {"--no-deps", "--disable-pip"} < set(words)  # neither resolved nor installed
    assert words[words.index("--format") + 1] == "json"


def test_every_entry_has_its_package_reason_and_date(tmp_path: Path) -> None:
    assert audit.reviewed()["GHSA-873f-pvrv-4x83"]["package"] == "monai"
    file = tmp_path / "reviewed.toml"
    for entry in ('package = "a"', 'package = "a"\nreason = " "\ndate = 2026-01-31'):
        file.write_text(f"[GHSA-1]\n{entry}\n")
        with pytest.raises(SystemExit, match="expected package, reason and date"):
            audit.reviewed(file)


def test_the_target_is_no_part_of_the_tests() -> None:
    makefile = (audit.ROOT / "Makefile").read_text()
    assert "audit: $(FOR_TESTS)\n\t$(BIN)/python scripts/audit.py\n" in makefile
    assert "audit" not in makefile.partition("\ntest:")[2].partition("audit:")[0]
