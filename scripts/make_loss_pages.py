"""Write the pages of the losses: docs/losses/index.md, options.md and a page for each loss.

    python scripts/make_loss_pages.py
    python scripts/make_loss_pages.py --check

A page comes from the docstring of its class, the entry of configs/losses.yaml, scripts/loss_facts.yaml, the
measurements in benchmarks/, docs/losses/public_code.csv, and from runs of the loss (corner_cases.py). `--check` writes
nothing, names the pages that are not as their sources say, and fails if there are any.
"""

import csv
import functools
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
import yaml
from corner_cases import corner_cases

from monai_extra_losses import losses
from monai_extra_losses.cli.loss_pages import (
    LossOption,
    LossText,
    base_options,
    loss_config,
    loss_options_of,
    loss_text,
    notes_that_hold,
    python_text,
    train_command,
)
from monai_extra_losses.losses.base import DistributionLoss, RegionLoss, SegmentationLoss
from monai_extra_losses.losses.boundary import DistanceLoss
from monai_extra_losses.losses.regression import RegressionLoss

ROOT = Path(__file__).resolve().parents[1]
PAGES = Path("docs/losses")
WRITTEN = "<!-- Written by scripts/make_loss_pages.py. -->"
FAMILIES = {
    "region": "of the overlap of each class",
    "distribution": "of the probability of each voxel",
    "compound": "sums and wrappers",
    "boundary": "of distances to a boundary",
    "structure": "of neighbourhoods and ranks",
    "vessels": "of how structures hang together",
    "lesions": "of single components",
    "calibration": "of probabilities as frequencies",
    "regression": "of maps of numbers",
}
BASES: dict[str, type] = {
    cls.__name__: cls for cls in (SegmentationLoss, RegionLoss, DistributionLoss, DistanceLoss, RegressionLoss)
}
ABOUT_BASES = {
    "SegmentationLoss": ("Every segmentation loss", "Losses of segmentation have, where their page says no more:"),
    "RegionLoss": ("Region losses", "Losses of soft counts, and compounds with one, also have:"),
    "DistributionLoss": ("Distribution losses", ""),
    "DistanceLoss": ("Boundary losses", "Losses of distances also have:"),
    "RegressionLoss": ("Regression losses", "Losses of a prediction and a target of numbers have:"),
}
# What a page runs its loss with where it is of no use with its defaults.
INPUTS = {
    "regression": "prediction = torch.rand(1, 3, 8, 8, 8, requires_grad=True)\ntarget = torch.rand(1, 3, 8, 8, 8)",
    "labels": "scores = torch.randn(1, 3, 8, 8, 8, requires_grad=True)\nlabels = torch.randint(0, 3, (1, 1, 8, 8, 8))",
    "HeadLoss": "features = torch.randn(1, 32, 8, 8, 8, requires_grad=True)  # what the last convolution reads\n"
    "labels = torch.randint(0, 200, (1, 1, 8, 8, 8))",
    "PartialLabelLoss": "scores = torch.randn(1, 3, 8, 8, 8, requires_grad=True)\n"
    "labels = torch.randint(0, 2, (1, 1, 8, 8, 8))\nannotated = torch.tensor([[True, True, False]])  # not class 2",
}
CALLS = {"HeadLoss": "features, labels", "PartialLabelLoss": "scores, labels, annotated=annotated"}


@functools.cache
def facts() -> Mapping[str, Any]:
    """scripts/loss_facts.yaml."""
    found: Mapping[str, Any] = yaml.safe_load((ROOT / "scripts/loss_facts.yaml").read_text(encoding="utf-8"))
    return found


@functools.cache
def page_name(cls: str) -> str:
    """Name of the page of a class: its key, or without one what it is called, without "loss"."""
    key = loss_text(cls).key
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.removesuffix("Loss"))
    return key or words.lower()


def loss_pages(root: Path) -> dict[Path, str]:
    """Path, from the root, and text of everything that is written."""
    classes = list(facts()["losses"])
    pages = {PAGES / f"{page_name(cls)}.md": loss_page(cls, root) for cls in classes}
    pages |= {PAGES / "index.md": index_page(classes), PAGES / "options.md": options_page()}
    return pages


def loss_table(classes: Iterable[str]) -> str:
    """A row for each class, with a link to its page, and its key below it."""
    rows = []
    for cls in classes:
        about, key = facts()["losses"][cls], loss_text(cls).key
        name = f"[`{cls}`]({page_name(cls)}.md)" + (f"<br>`{key}`" if key else "")
        rows.append([name, about["short"], about.get("paper", ""), about["monai"]])
    return table(["class, key", "formula", "paper", "in MONAI"], rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell is no border."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def index_page(classes: Sequence[str]) -> str:
    parts = [
        WRITTEN,
        "# The losses",
        "Each has a page: formula, picture, options, what it costs, what happens in the corner cases, and which others "
        "it equals. `p` is the probability of a class at a voxel, `g` the target, and TP = Σpg, FP = Σp(1-g), "
        "FN = Σ(1-p)g are counted for each sample and class. The key, below the class, is the name for `--loss`. Which "
        "one to take is said in [Choosing a loss](../choosing.md), what the options mean in [Options](options.md).",
    ]
    for family, what in FAMILIES.items():
        of_family = [cls for cls in classes if facts()["losses"][cls]["family"] == family]
        parts += [f"## {family.capitalize()}: {what}", loss_table(of_family)]
    return "\n\n".join(parts) + "\n"


def options_page() -> str:
    parts = [
        WRITTEN,
        "# Options that losses share",
        "MONAI's names, defaults and meanings wherever MONAI has them. A loss leaves out an option that has no meaning "
        "for it, and refuses it in a sentence. What is peculiar to a loss is on [its page](index.md).",
    ]
    for base, cls in BASES.items():
        title, opening = ABOUT_BASES[base]
        options = base_options(base)
        parts.append(f"## {title}")
        if opening:
            parts += [opening, option_table(cls, [option for option in options if option.name])]
        parts += [prose(capital(after_pointer(option.meaning)), "") for option in options if not option.name]
        if base == "SegmentationLoss":
            parts += absent_classes()
    return "\n\n".join(parts) + "\n"


def absent_classes() -> list[str]:
    """What the base says of classes without a voxel in the target."""
    paragraphs = inspect.cleandoc(SegmentationLoss.__doc__ or "").split("\n\n")
    at = next(n for n, text in enumerate(paragraphs) if text.startswith("Absent classes:"))
    rule, limits = paragraphs[at].removeprefix("Absent classes:").strip(), paragraphs[at + 1]
    items = [prose(item, "") for item in re.split(r"^- ", limits, flags=re.M)[1:]]
    return ["### Absent classes", prose(capital(rule), ""), "\n".join(f"- {item}" for item in items)]


def loss_page(cls: str, root: Path) -> str:
    """The page of a loss."""
    text, about, name = loss_text(cls), facts()["losses"][cls], page_name(cls)
    head = [f"Family: {about['family']}", f"`--loss {text.key}`" if text.key else "no key for `--loss`"]
    head.append(f"In MONAI: {about['monai']}")
    parts = [WRITTEN, f"# {cls}", " · ".join(head), prose(text.summary, cls), *about_key(cls, text.key)]
    parts += ["## Formula", *(f"```math\n{line}\n```" for line in about["math"]), symbol_list(about["symbols"])]
    if (root / PAGES / "pictures" / f"{name}.svg").exists():
        parts.append(f"![{picture_text(name, root)}](pictures/{name}.svg)")
    parts += ["## Remarks", *(prose(remark, cls) for remark in text.remarks)] if text.remarks else []
    parts += ["## Options", *option_parts(cls, text), "## Use", *use_parts(cls, text)]
    parts += ["## Corner cases", *case_parts(cls)]
    parts += ["## Time and memory", *measured_parts(cls, root)]
    if rows := equal_rows(cls):
        parts += ["## Equal to", EQUAL, table(["this", "is", "where", "see"], rows)]
    parts += trap_parts(name, root)
    parts += ["## Reference", prose(text.reference, cls)]
    return "\n\n".join(parts) + "\n"


def about_key(cls: str, key: str | None) -> Iterator[str]:
    """What `--loss` trains where it is more than the class, and the overlay that serves it."""
    config = loss_config(key, cls) if key else {}
    parts = config.get("losses") if cls != "CompoundLoss" else None
    if parts:
        summands = [
            f"{weight:g} × `{part['_target_'].rpartition('.')[2]}`"
            for (_, part), weight in zip(_named(parts), config["weights"], strict=True)
        ]
        own = next(at for at, part in _named(parts) if part["_target_"].endswith(f".{cls}"))
        yield (
            f"`--loss {key}` trains a sum of which this is a part: {' + '.join(summands)}. Its options are "
            f"`--loss::losses::{own}::NAME` there."
        )
    if key in OVERLAYS:
        overlay, page, what = OVERLAYS[key]
        yield f"In the bundle add `--with {overlay}`, which {what} ([how to](../how_to/{page}.md))."


def _named(parts: Any) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    return parts.items() if isinstance(parts, Mapping) else enumerate(parts)


OVERLAYS = {
    "component_dice_ce": ("lesions", "small_lesions", "finds the components once per volume"),
    "blob_dice_ce": ("lesions", "small_lesions", "finds the components once per volume"),
    "skeleton_recall": ("vessels", "vessels", "makes the skeletons once per volume"),
    "surface": ("boundary_maps", "millimetres", "measures the distances once per volume"),
}
EQUAL = (
    "In value and gradient to 1e-6 under a softmax, with every class present, as a test proves; C is the number of "
    "channels. The options by which a target is read are left out."
)


# --- text ---


def prose(text: str, cls: str) -> str:
    """A paragraph of a docstring as Markdown, with links to other losses, papers and options."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(linked(piece, cls) if piece.startswith("`") else papers(escaped(piece)) for piece in pieces)


def linked(code: str, cls: str) -> str:
    name = code.strip("`").partition(".")[0]
    if name in facts()["losses"] and name != cls and code == f"`{name}`":
        return f"[{code}]({page_name(name)}.md)"
    if name in BASES and code.strip("`") == name:
        return f"[{code}](options.md#{anchor(ABOUT_BASES[name][0])})"
    return code


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*")


def papers(text: str) -> str:
    text = re.sub(r"(?<![\w/])arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:(10\.[^\s;,]+[^\s;,.])", r"[doi:\1](https://doi.org/\1)", text)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def after_pointer(text: str) -> str:
    return re.sub(r"^(?:see|those of) `\w+`[.;,]?\s*", "", text)


def symbol_list(symbols: Iterable[str | Mapping[str, str]]) -> str:
    rows = [(s, facts()["symbols"][s]) if isinstance(s, str) else next(iter(s.items())) for s in symbols]
    return "\n".join(f"- **{escaped(name)}**: {escaped(meaning)}" for name, meaning in rows)


def picture_text(name: str, root: Path) -> str:
    """What the picture of a page shows, as who draws it says."""
    texts: Mapping[str, str] = yaml.safe_load((root / PAGES / "pictures/alt.yaml").read_text(encoding="utf-8"))
    return texts[name]


# --- options ---


def option_parts(cls: str, text: LossText) -> Iterator[str]:
    options = loss_options_of(cls)
    common = {(option.name, option.meaning) for base in BASES for option in base_options(base)}
    own = [option for option in options if (option.name, option.meaning) not in common]
    shared = [option for option in options if option not in own]
    if own:
        yield option_table(getattr(losses, cls), own, cls)
    if shared:
        names = ", ".join(f"`{o.name}={o.default}`" if o.default else f"`{o.name}`" for o in shared)
        yield f"{'It also has' if own else 'It has'} [options that losses share](options.md): {names}."
    without = {'"none"'} if refuses_none(cls) else set()
    yield from (prose(note, cls) for note in notes_that_hold(text.notes, {option.name for option in options}, without))


def refuses_none(cls: str) -> bool:
    """Whether a loss can be made, but not with reduction="none"."""
    make = getattr(losses, cls)
    try:
        make()
        make(reduction="none")
    except ValueError as error:
        return "reduction" in str(error)
    except TypeError:  # it must be given something, or has no reduction
        pass
    return False


def option_table(cls: type, options: Iterable[LossOption], page: str = "") -> str:
    rows = []
    for option in options:
        default = "must be given" if option.default is None else f"`{option.default}`"
        rows.append([f"`{option.name}`", default, range_of(cls, option.name), prose(option.meaning, page)])
    return table(["option", "default", "range", "meaning"], rows)


def range_of(cls: Any, name: str) -> str:
    """What an option may be, as its annotation says."""
    if (limit := getattr(cls, "ranges", {}).get(name)) is not None:
        return escaped(limit.words)
    annotation = inspect.signature(cls).parameters[name].annotation
    if annotation is bool:
        return "True, False"
    parts = list(parts_of(annotation))
    strings = [f'"{part}"' for part in parts if isinstance(part, str)]
    return ", ".join([*strings, *(text for kind, text in KINDS.items() if kind in parts)])


def parts_of(annotation: Any) -> Iterator[Any]:
    """The types and literals that an annotation is a union of."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType, Literal):
        for argument in arguments:
            yield from parts_of(argument)
    else:
        yield get_origin(annotation) or annotation


KINDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    Sequence: "list",
    Mapping: "dict",
    list: "list",
    tuple: "list",
    torch.Tensor: "tensor",
    torch.nn.Module: "module",
    Callable: "function",
    type(None): "None",
}


# --- use ---


def use_parts(cls: str, text: LossText) -> Iterator[str]:
    config = loss_config(text.key, cls)
    if text.key:
        yield f"```sh\n{in_lines(train_command(text.key))}\n```"
    elif cls == "HeadLoss":
        yield "In `train`: `--head_loss True`, with `--network dynunet` or `segresnet`."
    yield "In a MONAI config:"
    yield f"```yaml\n{yaml.safe_dump({'loss': config}, sort_keys=False, allow_unicode=True).rstrip()}\n```"
    yield "In Python:"
    yield f"```python\n{python_example(cls, config)}\n```"


def in_lines(command: str, width: int = 88) -> str:
    """A command with an option on each line, where it is too long for one."""
    return command if len(command) <= width else command.replace(" --loss::", " \\\n  --loss::")


def python_example(cls: str, config: Mapping[str, Any]) -> str:
    regression = facts()["losses"][cls]["family"] == "regression"
    targets = sorted(set(re.findall(r"_target_': '([\w.]+)'", str(config))))
    ours = [target.rpartition(".")[2] for target in targets if target.startswith("monai_extra_losses")]
    given = INPUTS.get(cls, INPUTS["regression" if regression else "labels"])
    called = CALLS.get(cls, "prediction, target" if regression else "scores, labels")
    made = formatted(f"loss = {python_text(config)}").replace("Conv3d(", "torch.nn.Conv3d(").replace("'", '"')
    imports = f"import torch\nfrom monai_extra_losses import {', '.join(ours)}"
    return f"{imports}\n\n{made}\n{given}\nloss({called}).backward()"


def formatted(code: str, width: int = 88) -> str:
    """A call on lines that are not too long: brackets open, from the outside in."""
    if len(code) <= width or not (at := re.search(r"[(\[{]", code)):
        return code
    opening = at.start()
    closing = len(code) - 1 - code[::-1].index({"(": ")", "[": "]", "{": "}"}[code[opening]])
    inner = [formatted(part, width - 5) for part in split(code[opening + 1 : closing])]
    return "\n".join([code[: opening + 1], *(f"{textwrap.indent(part, '    ')}," for part in inner), code[closing:]])


def split(arguments: str) -> Iterator[str]:
    """Arguments, at the commas outside brackets."""
    depth, start = 0, 0
    for at, character in enumerate(arguments + ","):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            if arguments[start:at].strip():
                yield arguments[start:at].strip()
            start = at + 1


# --- corner cases ---


def case_parts(cls: str) -> Iterator[str]:
    setting, rows = corner_cases(cls, facts()["losses"][cls]["family"])
    yield setting
    if rows:
        yield table(["case", "loss", "largest slope"], rows)


# --- measurements ---


@functools.cache
def measured(root: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of benchmarks/, by the class: a step of ours beside that of other code."""
    wanted = {"loss", "shape", "baseline", "time_ratio", "ours_memory", "baseline_memory", "allocator"}
    found: dict[str, list[dict[str, str]]] = {}
    for file in sorted((root / "benchmarks").glob("*.csv")):
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if not wanted <= row.keys() or row["baseline"] not in BESIDE:
                    continue
                if row["allocator"] == "keep" and row.get("busy", "0") == "0":
                    found.setdefault(row["loss"].partition(",")[0], []).append(row | {"file": file.name})
    # beside a bare softmax stands what there is no other code of
    return {name: [row for row in rows if row["baseline"] != "softmax"] or rows for name, rows in found.items()}


BESIDE = {
    "MONAI": "MONAI's class",
    "textbook": "a plain torch function of the same formula",
    "softmax": "a softmax and its backward, without a loss",
    "FusedDiceLoss": "`FusedDiceLoss`",
    "FusedDiceCELoss": "`FusedDiceCELoss`",
}


def measured_parts(cls: str, root: Path) -> Iterator[str]:
    if cls in MEASURED_APART:
        yield from measured_apart(cls, root)
        return
    rows = measured(root).get(cls, [])
    if not rows:
        named = cls in (root / "docs/performance.md").read_text(encoding="utf-8")
        yield "See [Time and memory](../performance.md)." if named else "Not measured."
        return
    others = dict.fromkeys(row["baseline"] for row in rows)
    yield (
        f"Of a step, forward and backward of the loss alone, beside {' or '.join(BESIDE[other] for other in others)}: "
        "time, the median ratio of ours to the other; memory, the peak beside the logits as a multiple of them, the "
        "gradient included. Shapes are batch x channels x voxels; `[fast]`: with the extra of that name."
    )
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(machine(row), []).append(row)
    for where, of_machine in groups.items():
        yield measured_table(of_machine)
        files = sorted({row["file"] for row in of_machine})
        yield f"{where}; {source(files, 'bench_boundary.py' if files == ['boundary.csv'] else 'bench_losses.py')}"


def measured_table(rows: Sequence[Mapping[str, str]]) -> str:
    several = len({row["baseline"] for row in rows}) > 1
    told = any("loops" in row for row in rows)  # of older rows plain torch computed
    cells = []
    for row in rows:
        option = row["loss"].partition(", ")[2]
        shape = f"{row['shape']}{f', `{option}`' if option else ''}"
        memory = (f"{float(row[f'{whose}_memory']):.2f}" for whose in ("ours", "baseline"))
        beside = [BESIDE[row["baseline"]]] if several else []
        beside += ["no" if row.get("loops", "none") == "none" else "yes"] if told else []
        cells.append([shape, row["dtype"], row["threads"], *beside, f"{float(row['time_ratio']):.2f}", *memory])
    more = [*(["beside"] if several else []), *(["`[fast]`"] if told else [])]
    columns = ["shape", "logits", "threads", *more, "time", "memory", "memory of the other"]
    return table(columns, cells)


def measured_apart(cls: str, root: Path) -> Iterator[str]:
    """Of a loss that has a benchmark of its own."""
    file, script, text, columns = MEASURED_APART[cls]
    with (root / "benchmarks" / file).open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"] in APART_NAMES]
    yield text
    cells = [[cell_of(row, column) for column in columns.values()] for row in rows]
    yield table(list(columns), cells)
    number = "1 thread" if rows[0]["threads"] == "1" else f"{rows[0]['threads']} threads"
    where = machine(rows[0]) if "threads" in columns else f"{machine(rows[0])}, {number}"
    yield f"{where}; {source([file], script)}"


def cell_of(row: Mapping[str, str], column: str) -> str:
    value = row[column]
    if column in ("loss", "shape", "iterations", "threads"):
        return APART_NAMES.get(value, value)
    return f"{float(value):.2f}"


def machine(row: Mapping[str, str]) -> str:
    return f"{row['device']}, torch {row['torch']}, MONAI {row['monai']}, {row['date']}"


def source(files: Iterable[str], script: str) -> str:
    return f"{', '.join(f'`benchmarks/{file}`' for file in files)}, by `benchmarks/{script}`."


# The names of losses in the benchmarks of their own.
APART_NAMES = {
    "ours": "`FusedDiceCELoss` of the scores",
    "HeadLoss": "`HeadLoss`",
    "MONAI": "MONAI's `DiceCELoss` of the scores",
    "clDice": "`CenterlineDiceLoss`",
}
# Class -> file and script in benchmarks/, what they say, and heading -> column of the table.
MEASURED_APART = {
    "HeadLoss": (
        "head.csv",
        "bench_head.py",
        "Of a step of the last convolution, on 32 features, and the loss, with the extra `[fast]`: time, divided by "
        "that of ours on scores; the peak memory beside the features, as a multiple of the scores. Shapes are "
        "channels x voxels.",
        {"shape": "shape", "threads": "threads", "loss": "loss", "time": "ratio", "memory": "memory"},
    ),
    "CenterlineDiceLoss": (
        "vessels_steps.csv",
        "bench_vessels.py --steps",
        "Of a step, beside MONAI's `SoftclDiceLoss`: time, ours divided by MONAI's, and the peak memory as a multiple "
        "of the logits.",
        {
            "shape": "shape",
            "iterations": "iterations",
            "time": "time_ratio",
            "memory": "ours_memory",
            "of MONAI's": "monai_memory",
        },
    ),
}


# --- relations and traps ---


def equal_rows(cls: str) -> list[list[str]]:
    rows = []
    for left, right, *about in facts()["equal"]:
        named = re.findall(r"\w+Loss\b", f"{left} {right}")
        if cls in named:
            first, second = (left, right) if re.search(rf"\b{cls}\b", str(left)) else (right, left)
            where = about[0]["when"] if about else "always"
            others = [name for name in dict.fromkeys(named) if name != cls]
            links = ", ".join(f"[{name}]({page_name(name)}.md)" for name in others)
            rows.append([f"`{first}`", f"`{second}`", where, links])
    return rows


def trap_parts(name: str, root: Path) -> Iterator[str]:
    """What public code of the loss does, as benchmarks/remarks.py prints it by running that code."""
    file = root / PAGES / "public_code.csv"
    if not file.exists():
        return
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"] == name]
    if rows:
        yield "## In public code"
        yield "Printed by `benchmarks/remarks.py`, which runs the libraries."
        columns = ["library", "name", "trap", "case", "theirs", "right"]
        cells = [
            [f"{row['library']} {row['version']}", f"`{row['name']}`", *(prose(row[c], "") for c in columns[2:])]
            for row in rows
        ]
        yield table(columns, cells)


# --- writing ---


def stale_pages(root: Path) -> list[str]:
    """The pages, from the root, that are not as their sources say, are missing, or belong to no loss."""
    pages = loss_pages(root)
    known = {path for path in pages if path.parent == PAGES}
    others = [path.relative_to(root) for path in sorted((root / PAGES).glob("*.md"))]
    wrong = [path for path, text in pages.items() if not _is(root / path, text)]
    return [str(path) for path in (*wrong, *(path for path in others if path not in known))]


def _is(file: Path, text: str) -> bool:
    return file.exists() and file.read_text(encoding="utf-8") == text


def main(arguments: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "--check" in arguments:
        wrong = stale_pages(ROOT)
        if wrong:
            sys.exit(f"Not as their sources say: {', '.join(wrong)}; run python scripts/make_loss_pages.py.")
        print("The pages of the losses are as their sources say.")
        return
    for path, text in loss_pages(ROOT).items():
        if not _is(ROOT / path, text):
            (ROOT / path).write_text(text, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
