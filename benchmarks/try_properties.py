"""Try the properties of tests/support/loss_properties.py on many drawn calls of every loss.

    python benchmarks/try_properties.py --examples 200 --seed 0

prints a Markdown table of the properties: losses, cases tried, survived and lost; and below it each lost case, shrunk.
`--losses` and `--properties` take parts of names.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from loss_list import LossEntry
from loss_properties import PROPERTIES, Property


class Tried:
    """The cases of one property and loss; `lost` is the last that failed, which is the smallest."""

    def __init__(self, prop: Property, entry: LossEntry, examples: int, seed: int) -> None:
        self.survived = self.failed = 0
        self.lost = ""

        @seeded(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(prop.of_entry(entry))
        def run(drawn: tuple[object, int]) -> None:
            call, number = drawn
            try:
                prop.holds(call, number)  # type: ignore[arg-type]
            except Exception as error:
                if type(error).__name__ != "UnsatisfiedAssumption":
                    self.failed += 1
                    self.lost = f"{call}, {number}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise
            self.survived += 1

        try:
            run()
        except Unsatisfiable:  # every call drawn was one that the property is not of
            pass
        except Exception as error:
            self.lost = self.lost or f"{entry.name}: {type(error).__name__}: {error}"


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Tried]]]:
    for name, prop in PROPERTIES.items():
        if any(part in name for part in arguments.properties):
            of = [entry for entry in prop.entries if any(part in entry.name for part in arguments.losses)]
            yield name, {entry.name: Tried(prop, entry, arguments.examples, arguments.seed) for entry in of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="cases of each property and loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", nargs="*", default=[""])
    parser.add_argument("--properties", nargs="*", default=[""])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| Property | Losses | Cases | Survived | Losses that lost | Seconds |\n|---|---|---|---|---|---|")
    lost: list[str] = []
    start = time.perf_counter()
    for name, tried in rows(arguments):
        seconds, start = time.perf_counter() - start, time.perf_counter()
        survived, failed = (sum(getattr(t, kind) for t in tried.values()) for kind in ("survived", "failed"))
        wrong = {loss: t.lost for loss, t in tried.items() if t.lost}
        print(
            f"| {name} | {len(tried)} | {survived + failed} | {survived} | {len(wrong)} | {seconds:.0f} |", flush=True
        )
        lost += [f"- {name}: {text}" for text in wrong.values()]
        if wrong:
            print("\n".join(f"  {text}" for text in wrong.values()), file=sys.stderr, flush=True)
    print("\n".join(["", *lost]) if lost else "\nNo case was lost.")


if __name__ == "__main__":
    main()
