"""docs/citing.md: how to cite the package, from CITATION.cff, and each loss, from the reference in its docstring.

`python scripts/make_citing.py` writes the page, with `--check` it says whether it is as it would be written.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from api_text import blocks_of, escaped, with_addresses

from monai_extra_losses import losses, transforms

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "citing.md"

TEXT = """\
# Citing

Name the package with its version, the class with the options that you changed, and cite the paper that proposed the
loss. For example: "We trained with the focal Tversky loss (Abraham and Khan 2019), alpha = 0.3, beta = 0.7,
gamma = 4/3, as implemented by `FocalTverskyLoss` of monai_extra_losses {version}." A training records loss, options and
versions in its run folder: `models/run.json` and `models/environment.json`.

Options decide about numbers: whether the background counts, over what the mean is (`batch`, `reduction`), the
smoothing, and the class weights. Say them where they differ from the defaults.

## The package

{apa}

```bibtex
{bibtex}
```

The same stands in the file `CITATION.cff` of the source. The package has no DOI.

## The losses

What each class says of its source. "After" means that the formula departs from the paper, "as" that it is that of
another library; the class says how.

| Loss or transform | Reference |
|---|---|
{rows}

Written by `scripts/make_citing.py` from the docstrings, and checked by a test.
"""


def page() -> str:
    """The page."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    author, year = citation["authors"][0]["name"], citation["date-released"][:4]
    title, version = citation["title"], citation["version"]
    bibtex = {
        "author": f"{{{author}}}",
        "title": f"{{{title}}}",
        "version": version,
        "year": year,
        "note": f"Software, {citation['license']}",
    }
    entry = ",\n".join(f"  {name} = {{{value}}}" for name, value in bibtex.items())
    return TEXT.format(
        version=version,
        apa=escaped(f"{author} ({year}). {title} (version {version}). Software, {citation['license']}."),
        bibtex=f"@misc{{monai_extra_losses,\n{entry}\n}}",
        rows="\n".join(_rows()),
    )


def _rows() -> Iterator[str]:
    described = {
        name: getattr(module, name).__doc__ or "" for module in (losses, transforms) for name in module.__all__
    }
    pages = _pages()
    for name, docstring in described.items():
        paragraphs = [text for title, text in blocks_of(docstring) if title is None]
        for text in paragraphs:
            if text.startswith("Reference:"):
                reference = " ".join(text.removeprefix("Reference:").split())
                first = reference[0] if reference.startswith("arXiv") else reference[0].upper()
                shown = with_addresses(escaped(first + reference[1:]))
                yield f"| [`{name}`](reference/{pages[name]}) | {shown} |"


def _pages() -> dict[str, str]:
    """Name of a class -> page of the reference."""
    return {
        name: page.name
        for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for name in re.findall(
            r"^::: monai_extra_losses\.(?:transforms\.)?(\w+)$", page.read_text(encoding="utf-8"), re.M
        )
    }


if __name__ == "__main__":
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif text != PAGE.read_text(encoding="utf-8"):
        sys.exit("docs/citing.md is not as it would be written; run scripts/make_citing.py.")
