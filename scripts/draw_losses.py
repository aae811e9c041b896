"""Draw what each loss does, docs/losses/pictures/NAME.svg, and say it in words, alt.yaml beside them.

python scripts/draw_losses.py                  all of them
python scripts/draw_losses.py --only dice focal
python scripts/draw_losses.py --check          draw nothing; fail where a picture does not show what the loss does
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import yaml
from loss_pictures import curves, maps, others, regions
from loss_pictures.sheet import Sheet, differing, shown_by

import monai_extra_losses
from monai_extra_losses.cli.loss_pages import loss_table

FOLDER = Path(__file__).parents[1] / "docs" / "losses" / "pictures"
PICTURES: Mapping[str, Callable[[], Sheet]] = {
    **curves.PICTURES,
    **regions.PICTURES,
    **maps.PICTURES,
    **others.PICTURES,
}


def names_of_losses() -> list[str]:
    """Keys of configs/losses.yaml, then the classes that it does not have, in snake case."""
    table = loss_table()
    others = [name for name in monai_extra_losses.__all__ if name.endswith("Loss") and f".{name}'" not in str(table)]
    return [*table, *(snake_case(name.removesuffix("Loss")) for name in others)]


def snake_case(name: str) -> str:
    """KLDivergence -> kl_divergence."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def draw(names: Iterable[str], folder: Path) -> None:
    """Write pictures, and what they show in words.

    Args:
        names: of the pictures.
        folder: where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alt = alt_of(folder)
    for name in names:
        sheet = PICTURES[name]()
        (folder / f"{name}.svg").write_text(sheet.svg(), encoding="utf-8")
        alt[name] = sheet.alt
    text = yaml.safe_dump({name: alt[name] for name in sorted(alt)}, allow_unicode=True, width=120)
    (folder / "alt.yaml").write_text(text, encoding="utf-8")


def alt_of(folder: Path) -> dict[str, str]:
    """Name -> sentence; empty where there is none yet."""
    file = folder / "alt.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else {}


def problems_of(names: Iterable[str], folder: Path) -> Iterator[str]:
    """One line for each picture that does not show what its loss does."""
    alt = alt_of(folder)
    for name in names:
        file = folder / f"{name}.svg"
        if not file.exists():
            yield f"{name}: there is no picture"
            continue
        sheet = PICTURES[name]()
        title, numbers = shown_by(file)
        wrong = differing(numbers, sheet.numbers)
        if wrong:
            yield f"{name}: other numbers in {', '.join(wrong)}"
        if title != sheet.title:
            yield f"{name}: another title"
        if alt.get(name) != sheet.alt:
            yield f"{name}: another text in alt.yaml"


def left_over(folder: Path) -> Iterator[str]:
    """One line for each picture, and each text, of a loss that there is not, and for each loss without a picture."""
    names = set(names_of_losses())
    yield from (f"{name}: there is no code that draws it" for name in sorted(names - set(PICTURES)))
    there = {file.stem for file in folder.glob("*.svg")} | set(alt_of(folder))
    yield from (f"{name}: there is no such loss" for name in sorted((there | set(PICTURES)) - names))


def main() -> None:
    """Draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="draw nothing; fail where a picture is stale")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(PICTURES), help="some of them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the pictures")
    options = parser.parse_args()
    names = options.only or list(PICTURES)
    if not options.check:
        draw(names, options.folder)
        return
    problems = [*([] if options.only else left_over(options.folder)), *problems_of(names, options.folder)]
    if problems:
        sys.exit("\n".join([*problems, "Run python scripts/draw_losses.py, and look at what it draws."]))
    print(f"{len(names)} pictures show what the losses do.")


if __name__ == "__main__":
    main()
