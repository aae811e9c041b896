"""docs/licences.md: the direct dependencies, from what is installed.

`python scripts/list_licences.py` writes the page, with `--check` it says whether it is as it would be written. A
package that is not installed in its proven version keeps its row.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"

# Licences that have another name in the metadata of a package.
NAMES = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-based (matplotlib's own)",
}
FOR = {
    "monai": "networks, transforms, engines, inference; options and names of the losses",
    "torch": "tensors and gradients",
    "numpy": "arrays",
    "edt": "exact distance maps on the CPU",
    "pytorch-ignite": "the loops of training and evaluation",
    "fire": "MONAI's command line",
    "pyyaml": "configs",
    "nibabel": "NIfTI files",
    "pydicom": "headers of DICOM files",
    "scipy": "surface distances, statistics, pairing of lesions",
    "SimpleITK": "DICOM voxels, NRRD, MHA, MHD",
    "tensorboard": "logs of a training",
    "matplotlib": "pictures",
    "click": "the command line",
    "tqdm": "progress bars",
    "scikit-image": "skeletons",
    "nnunetv2": "nnU-Net's trainers",
    "connected-components-3d": "connected components",
    "submitit": "jobs of SLURM",
    "highdicom": "DICOM SEG objects",
    "dcmqi": "reads DICOM SEG in the tests",
    "zensical": "the site of the documentation",
    "mkdocstrings-python": "the reference of the documentation",
    "latex2mathml": "formulas of the documentation",
    "ruff": "lint, format",
    "mypy": "types",
    "pip-audit": "known vulnerabilities of the dependencies",
    "pytest": "tests",
    "pytest-xdist": "tests in several processes",
    "hypothesis": "calls of losses that the tests draw",
    "build": "wheel and sdist",
    "hatchling": "wheel and sdist",
    "twine": "check of wheel and sdist",
    "jsonschema": "tests of configs against MONAI's schema",
    "ipykernel": "tests of the notebooks",
    "nbclient": "tests of the notebooks",
    "nbformat": "tests of the notebooks",
    "lightning": "tests of an example",
    "einops": "tests with MONAI's UNETR",
    "numba": "compiles the loops of the losses for the CPU",
    "triton": "tests of the GPU kernels on the CPU",
}
ABOUT = """\
# Licences

monai_extra_losses is under the Apache License 2.0. Its wheel and its sdist hold the code of this project alone: no
source and no binary of another package is copied into them. Whoever installs the package gets the packages below from
their own authors, each under its own licence.

What that means in practice (no legal advice):

- **Permissive licences** (Apache-2.0, BSD, MIT, ISC, PSF) ask that their text and copyright lines stay with a copy. An
  application or image that ships the packages has to carry them.
- **LGPL-3.0-or-later**: `edt`, which every installation has, and `connected-components-3d` of the extra `[lesions]`.
  Both are imported as modules of their own, unchanged, so the licence of this package and of your code stays what it
  is. Whoever passes them on, inside an application or a container image, gives their licence and their source or where
  it is, and leaves it possible to exchange them for another version; that asks for care where an application is
  frozen into one file.
- **MPL-2.0**: `tqdm`, and `hypothesis` of the tests. Changes of their own files are to be published; the rest of a
  program is not touched.
- torch, numpy and scipy carry further libraries in their wheels. The licence texts lie in each `*.dist-info` folder;
  builds of torch for CUDA also install libraries of NVIDIA under NVIDIA's terms.

Weights of networks and data sets have licences of their own.

The tables name the direct dependencies with the versions that the tests run with (`constraints.txt`), and the licences
that their metadata state. Written by `scripts/list_licences.py`, and checked by a test.
"""
HEADINGS = {
    "": "Always",
    "bundle": "Training, evaluation and inference: the extra `[bundle]`",
    "fast": "Losses on the CPU: the extra `[fast]`",
    "vessels": "Skeletons: the extra `[vessels]`",
    "lesions": "Connected components: the extra `[lesions]`",
    "compare": "Comparisons: the extra `[compare]`",
    "dicom": "DICOM SEG: the extra `[dicom]`",
    "nnunet": "nnU-Net: the extra `[nnunet]`",
    "docs": "Only to build the documentation",
    "test": "Only to test",
    "dev": "Only to develop",
}


def page_of(old: str) -> str:
    """The page.

    Args:
        old: the page as it is, whose rows stand for what is not installed in its proven version.
    """
    kept = dict(re.findall(r"^\| `([\w.-]+)` \|[^|]*\| ([^|]*?) \|", old, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {"": project["dependencies"], **project["optional-dependencies"]}
    assert set(required) == set(HEADINGS), "an extra has no heading"
    parts, seen = [ABOUT], set()
    for extra, heading in HEADINGS.items():
        names = [name for name in map(_name, required[extra]) if name not in {*seen, project["name"]}]
        seen |= set(names)
        if names:
            rows = "\n".join(_rows(names, kept))
            parts.append(f"## {heading}\n\n| Package | Version | Licence | What for |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _rows(names: list[str], kept: Mapping[str, str]) -> Iterator[str]:
    proven = _proven()
    for name in names:
        version = proven[name.lower()]
        licence = licence_of(name) if _installed(name) == version else kept.get(name)
        if licence is None:
            raise SystemExit(f"Expected {name} {version} to be installed, whose licence is not known; install it.")
        yield f"| `{name}` | {version} | {licence} | {FOR[name]} |"


def _proven() -> dict[str, str]:
    lines = [(ROOT / file).read_text(encoding="utf-8") for file in ("constraints-nnunet.txt", "constraints.txt")]
    found = re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(lines), re.M)
    comment = re.search(r"^# triton .* (\d[\d.]*\d) is proven", lines[1], re.M)
    assert comment is not None
    return {"triton": comment[1], **{name.lower(): version for name, version in found}}


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def licence_of(name: str) -> str:
    """The licence of an installed package, as short as its metadata have it."""
    about = metadata.metadata(name)
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    text = (about["License"] or "").strip()
    short = text if text and len(text.splitlines()) == 1 and len(text) < 40 else ""
    found = about["License-Expression"] or short or ", ".join(classifiers)
    return NAMES.get(found, found)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    page = page_of(before)
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif page != before:
        sys.exit("docs/licences.md is not as it would be written; run scripts/list_licences.py.")
