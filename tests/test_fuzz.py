"""Damaged files over the commands, by benchmarks/fuzz.py: a few here, more behind `slow`, thousands by hand."""

import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from loss_list import each


@each("group", fuzz.GROUPS)
def test_damaged_files_are_read_rightly_or_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: fuzz.Group
) -> None:
    for number in range(5):
        place = tmp_path / group.name / str(number)
        place.mkdir(parents=True)
        monkeypatch.chdir(place)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        seed = f"1/{group.name}/check/{number}"
        assert fuzz.try_case(group, "check", seed, place, tmp_path) is None, seed


def test_what_is_lost_is_told() -> None:
    """Each rule of survival can fail."""
    refused = fuzz._refused_rightly
    assert refused("a.nii: expected a file, got none.", "", ["a.nii"]) is None
    assert refused(1, "a.nii: expected a file, got none.\n", ["a.nii"]) is None
    assert refused(1, "", ["a.nii"]) == "no sentence: nothing"
    assert (
        refused(1, "Traceback (most recent call last):\nValueError: a.nii", ["a.nii"])
        == "no sentence: ValueError: a.nii"
    )
    assert refused("Expected a file, got none.", "", ["a.nii"]) == "no file is named: Expected a file, got none."
    assert refused("a.nii: \x1b[31m", "", ["a.nii"]) == "control characters: 'a.nii: \\x1b[31m'"
    assert refused("\n".join(["a.nii"] * 41), "", ["a.nii"]) == "41 lines"


def test_a_process_that_hangs_or_dies_loses_its_case_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuzz, "_SECONDS", 0.5)
    deeds = {"hangs": "import time; time.sleep(60)", "dies": "import os; os._exit(1)", "fails": "1 / 0", "goes": ""}

    def try_case(group: fuzz.Group, command: str, seed: str, place: Path, run: Path) -> str | None:
        exec(deeds[seed])
        return None

    monkeypatch.setattr(fuzz, "try_case", try_case)
    jobs = [("check", deed) for deed in (*deeds, "goes")]
    assert list(fuzz.run_group(fuzz.GROUPS[0], jobs, tmp_path)) == [
        ("check", "hangs", "hangs: no end after 0.5 s"),
        ("check", "dies", "the process died"),
        ("check", "fails", "ZeroDivisionError: division by zero"),
        ("check", "goes", None),
        ("check", "goes", None),
    ]


@pytest.mark.slow
def test_several_hundred_cases_over_all_commands_survive() -> None:
    script = Path(fuzz.__file__)
    ended = subprocess.run([sys.executable, script, "--cases", "400", "--seed", "2"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-5000:]
    assert ended.stdout.count("\n|") > 20
