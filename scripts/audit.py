"""`make audit`: known vulnerabilities of the packages of constraints.txt, by pip-audit.

Those of `scripts/reviewed_vulnerabilities.toml` are passed over; any other one fails, and so does a service that
does not answer, whose silence says nothing. Run it where the packages are installed; it needs the network.
"""

import datetime
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REVIEWED = ROOT / "scripts" / "reviewed_vulnerabilities.toml"


def reviewed(file: Path = REVIEWED) -> dict[str, dict[str, Any]]:
    """Identifier -> package, reason and date of what was looked into.

    Raises:
        SystemExit: an entry lacks one of them.
    """
    entries: dict[str, dict[str, Any]] = tomllib.loads(file.read_text(encoding="utf-8"))
    for name, entry in entries.items():
        good = set(entry) == {"package", "reason", "date"} and isinstance(entry["date"], datetime.date)
        if not good or not all(isinstance(entry[key], str) and entry[key].strip() for key in ("package", "reason")):
            raise SystemExit(f"{file}: expected package, reason and date (2026-01-31) of {name}, got {entry}.")
    return entries


def requirements(file: Path = ROOT / "constraints.txt") -> list[str]:
    """The proven versions."""
    return re.findall(r"^[\w.-]+==\S+$", file.read_text(encoding="utf-8"), re.M)


def command(proven: Path) -> list[str]:
    """What asks the service: each version as it stands, and nothing is downloaded or resolved."""
    return [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(proven), "--no-deps", "--disable-pip"),
        *("--format", "json", "--progress-spinner", "off", "--strict"),
    ]


def verdict(answer: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], asked: Sequence[str]) -> list[str]:
    """What is wrong, a line each: a version that was not looked up, a vulnerability that nobody looked into."""
    found = {_one_spelling(dependency["name"]): dependency for dependency in answer["dependencies"]}
    wrong = []
    for line in asked:
        dependency = found.get(_one_spelling(line.partition("==")[0]), {"skip_reason": "nothing"})
        if "vulns" not in dependency:
            said = dependency.get("skip_reason", "nothing")
            wrong.append(f"{line}: expected an answer of the vulnerability service, got: {said}")
        wrong += [_sentence(line, one) for one in dependency.get("vulns", ()) if not _is_known(line, one, known)]
    return wrong


def _is_known(line: str, vulnerability: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> bool:
    entries = [known[name] for name in (vulnerability["id"], *vulnerability.get("aliases", ())) if name in known]
    return any(_one_spelling(entry["package"]) == _one_spelling(line.partition("==")[0]) for entry in entries)


def _sentence(line: str, vulnerability: Mapping[str, Any]) -> str:
    fixed = ", ".join(vulnerability.get("fix_versions", ())) or "no version"
    return (
        f"{line}: {vulnerability['id']}, fixed in {fixed}; take a version without it, or say in {REVIEWED.name} why it "
        "does not apply."
    )


def main() -> None:
    """Ask, and end with an exit code other than 0 where anything is wrong."""
    known, asked = reviewed(), requirements()
    with tempfile.TemporaryDirectory() as folder:
        proven = Path(folder) / "proven.txt"
        proven.write_text("\n".join(asked) + "\n", encoding="utf-8")
        ended = subprocess.run(command(proven), capture_output=True, text=True, check=False)
    try:
        answer = json.loads(ended.stdout)
        wrong = verdict(answer, known, asked)
    except (ValueError, LookupError, TypeError):  # pip-audit ends with 1 where it found any, and where it could not ask
        said = (ended.stderr.strip().splitlines() or ["nothing"])[-1]
        raise SystemExit(f"Expected an answer of the vulnerability service, got: {said}") from None
    if wrong:
        raise SystemExit("\n".join([*wrong, f"{len(wrong)} findings over {len(asked)} packages."]))
    print(f"{len(asked)} packages, no vulnerability that is known and not reviewed.")


def _one_spelling(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
