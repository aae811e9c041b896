"""What `monai-extra-losses show` prints of a loss, read from the sources: importing torch would take seconds."""

import ast
import difflib
import functools
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import monai_extra_losses
from monai_extra_losses.data.errors import StartUpRefused

_WIDTH = 100


_PACKAGE = "monai_extra_losses.losses"


# What a class without defaults is shown with, and how a training has it.
_PARTS: dict[str, dict[str, Any]] = {
    "HeadLoss": {
        "head": {"_target_": "torch.nn.Conv3d", "in_channels": 32, "out_channels": 200, "kernel_size": 1},
        "loss": {"_target_": f"{_PACKAGE}.FusedDiceCELoss", "to_onehot_y": True, "softmax": True},
    },
    "PartialLabelLoss": {
        "loss": {"_target_": f"{_PACKAGE}.FusedDiceCELoss", "to_onehot_y": True, "softmax": True},
    },
}
_ABOUT_TRAIN = {"HeadLoss": "In `train`: --head_loss True, with --network dynunet or segresnet."}
# what the training configs give for data with labels
_FOR_LABELS = {"@to_onehot_y": True, "@softmax": True, "$'sigmoid' if @sigmoid else 'marginal'": "marginal"}


_LEFT_TO_DEFAULTS = {"@sigmoid", "@include_background"}


_SHARING = ("SegmentationLoss", "RegionLoss")  # bases whose options most losses have


@dataclass(frozen=True)
class LossOption:
    """An option of a loss.

    Args:
        name: of the option.
        default: as Python writes it; None: it must be given.
        meaning: what the docstring says of it.
        own: it is none of those that most losses have.
    """

    name: str
    default: str | None
    meaning: str
    own: bool


@dataclass(frozen=True)
class LossText:
    """What the docstring of a loss says.

    Args:
        key: of the table; None for a loss that is not in it.
        cls: name of its class.
        summary: its first line.
        formula: as text.
        remarks: paragraphs after the formula.
        notes: what it and its bases say of the options as a whole.
        reference: the papers.
    """

    key: str | None
    cls: str
    summary: str
    formula: str
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class _Source:
    """A class of `losses/`, as it is written."""

    name: str
    node: ast.ClassDef
    bases: tuple[str, ...]
    constants: Mapping[str, Any]  # of its module

    @property
    def paragraphs(self) -> list[str]:
        return inspect.cleandoc(ast.get_docstring(self.node) or "").split("\n\n")

    @property
    def described(self) -> dict[str, str]:
        """Name -> meaning, of the section Args."""
        section = next((p for p in self.paragraphs if p.startswith("Args:")), "Args:")
        entries: dict[str, str] = {}
        for names, meaning in re.findall(r"^    ([\w*][\w, *]*): (.*(?:\n {5,}.*)*)", section, re.M):
            entries |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
        return entries

    def attribute(self, name: str) -> Any:
        """The value of a class attribute, from literals and constants of the module; None where there is none."""
        for statement in self.node.body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
                continue
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(target, ast.Name) and target.id == name:
                value = statement.value
                is_class = isinstance(value, ast.Name) and value.id not in self.constants
                return ast.unparse(value) if is_class else self._literal(value)
        return None

    def _literal(self, value: ast.expr) -> Any:
        return eval(compile(ast.Expression(value), self.name, "eval"), dict(self.constants))


@functools.cache
def loss_table() -> Mapping[str, Any]:
    """The losses of configs/losses.yaml: name -> entry."""
    text = (monai_extra_losses.config_dir() / "losses.yaml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = yaml.safe_load(text)["losses"]
    return table


def loss_page(name: str) -> str:
    """Formula, options, configuration and reference of a loss, as text.

    Args:
        name: of an entry of configs/losses.yaml, or of a class, in any case.

    Raises:
        StartUpRefused: there is no such loss; the nearest names are given.
    """
    text = loss_text(name)
    key, cls = text.key, text.cls
    lines = [f"{cls}{f'   --loss {key}' if key else ''}", "", *_filled(text.summary), "", *_heading("Formula")]
    lines += textwrap.indent(text.formula, "  ").splitlines()
    for remark in text.remarks:
        lines += ["", *_filled(remark)]
    options = loss_options_of(cls)
    for title, own in (("Options", True), ("Options that it shares with other losses", False)):
        chosen = [option for option in options if option.own is own]
        if chosen:
            lines += ["", *_heading(title), *_option_lines(chosen)]
    for note in notes_that_hold(text.notes, {option.name for option in options}):
        lines += ["", *_filled(note)]
    lines += ["", *_heading("Configuration"), *_configuration(key, cls)]
    lines += ["", *_heading("Reference"), *_filled(text.reference)]
    return "\n".join(lines)


def loss_text(name: str) -> LossText:
    """What the docstring of a loss says; name and errors as of `loss_page`."""
    key, cls = _found(name)
    summary, formula, *others = _sources()[cls].paragraphs
    reference = next(p for p in others if p.startswith("Reference:")).removeprefix("Reference:").strip()
    remarks = tuple(_before_sections(others))
    return LossText(key, cls, summary, formula, remarks, tuple(_notes(cls)), reference)


def base_options(base: str) -> list[LossOption]:
    """The options that a base class describes; "" is what it says of the others as a whole.

    Args:
        base: name of the class.
    """
    defaults = _parameters(base)
    return [
        LossOption("" if name == "**options" else name, defaults.get(name), meaning, own=True)
        for name, meaning in _sources()[base].described.items()
    ]


def notes_that_hold(notes: Iterable[str], options: set[str], said: Iterable[str] = ()) -> Iterator[str]:
    """Notes of a class, then of its bases, without sentences about what it has not, or what was said already.

    Args:
        notes: of `LossText`.
        options: names of those that the class has.
        said: subjects to leave out, an option or a reduction, as the sentences begin: `weight`, "none".
    """
    said = set(said)
    for note in notes:
        sentences = re.split(r"(?<=[.;]) (?=[`\"A-Z])", note)
        subjects = [re.match(r"`\w+`|\"\w+\"", sentence) for sentence in sentences]
        names = [subject[0] if subject else "" for subject in subjects]
        kept = [
            sentence
            for sentence, name in zip(sentences, names, strict=True)
            if name not in said and (not name.startswith("`") or name.strip("`") in options)
        ]
        said |= {name for name in names if name}
        if kept:
            yield " ".join(kept)


def loss_options_of(cls: str) -> list[LossOption]:
    """The options of a loss, in the order of its signature.

    Args:
        cls: name of its class.
    """
    shared = {name for base in _SHARING for name in _sources()[base].described}
    return [
        LossOption(name, default, _meaning(cls, name), own=name not in shared)
        for name, default in _parameters(cls).items()
    ]


def loss_config(key: str | None, cls: str) -> dict[str, Any]:
    """The component of a MONAI config for data with labels, as the table has it, or with the defaults of its class.

    Args:
        key: of the table; None for a loss that is not in it.
        cls: name of the class.
    """
    defaults = {option.name: _value(option) for option in loss_options_of(cls) if option.own}
    known = {name: value for name, value in defaults.items() if value is not None}
    if key is None:
        return {"_target_": f"{_PACKAGE}.{cls}", **_PARTS.get(cls, {}), **known}
    config: dict[str, Any] = _resolved(loss_table()[key])
    part = _part_of(key, config)
    about = config if part is None else config["losses"][part]
    about |= {name: value for name, value in known.items() if name not in about}
    return config


def python_text(component: Any) -> str:
    """A component of a config as a Python expression."""
    if isinstance(component, Mapping) and "_target_" in component:
        options = ", ".join(f"{k}={python_text(v)}" for k, v in component.items() if k != "_target_")
        return f"{component['_target_'].rpartition('.')[2]}({options})"
    if isinstance(component, Mapping):
        return f"{{{', '.join(f'{k!r}: {python_text(v)}' for k, v in component.items())}}}"
    if isinstance(component, list):
        return f"[{', '.join(map(python_text, component))}]"
    return repr(component)


def _found(name: str) -> tuple[str | None, str]:
    """Key of the table and class of a loss."""
    keys = {key: _class_of(key, entry) for key, entry in loss_table().items()}
    classes = {cls: key for key, cls in keys.items()}
    names = [cls for cls in monai_extra_losses.__all__ if cls.endswith("Loss")]
    short = name.rpartition(".")[2].rpartition("::")[2].lower()
    for cls in names:
        key = classes.get(cls)
        if short in (cls.lower(), key):
            return key, cls
    known = {known.lower(): known for known in (*keys, *names)}
    longer = sorted((low for low in known if short and short in low), key=len)  # MONAI's DiceLoss is our FusedDiceLoss
    near = dict.fromkeys([*longer[:2], *difflib.get_close_matches(short, known, n=3, cutoff=0.5)])
    meant = f" (did you mean {' or '.join(known[low] for low in list(near)[:3])}?)" if near else ""
    raise StartUpRefused(f"There is no loss {name!r}{meant}; `monai-extra-losses list` prints them all.")


def _class_of(key: str, entry: Mapping[str, Any]) -> str:
    """The class that an entry of the table is about."""
    part = _part_of(key, entry)
    about = entry if part is None else entry["losses"][part]
    return str(about["_target_"]).rpartition(".")[2]


def _part_of(key: str, entry: Mapping[str, Any]) -> str | None:
    """The part that an entry is about, where it has partners: that of its name, else the last; None without parts."""
    parts = entry.get("losses")
    if not isinstance(parts, Mapping):
        return None
    return key if key in parts else list(parts)[-1]


@functools.cache
def _sources() -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    for file in sorted((Path(__file__).parents[1] / "losses").glob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        constants: dict[str, Any] = {}
        for statement in module.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                try:
                    constants[statement.targets[0].id] = ast.literal_eval(statement.value)
                except ValueError:
                    continue
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
                found[node.name] = _Source(node.name, node, bases, constants)
    return found


def _init(cls: str) -> ast.FunctionDef | None:
    body = _sources()[cls].node.body
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)


def _options_kind(cls: str) -> str | None:
    """The dictionary of options, RegionOptions say, that `**options` of a constructor are; None without."""
    init = _init(cls)
    others = None if init is None else init.args.kwarg
    unpacked = None if others is None else others.annotation
    return unpacked.slice.id if isinstance(unpacked, ast.Subscript) and isinstance(unpacked.slice, ast.Name) else None


def _base(cls: str) -> str | None:
    """The class that says what `**options` are."""
    kind = _options_kind(cls)
    keeps = (name for name, source in _sources().items() if kind and source.attribute("keeps") == kind and name != cls)
    return next(keeps, None) or next((base for base in _sources()[cls].bases if base in _sources()), None)


def _parameters(cls: str) -> dict[str, str | None]:
    """Name -> default, as `inspect.signature` would give them."""
    source, init = _sources()[cls], _init(cls)
    left_out = _inherited_attribute(cls, "left_out") or {}
    if init is None:
        inherited = _parameters(next(base for base in source.bases if base in _sources()))
        return {name: default for name, default in inherited.items() if name not in left_out}
    positional = init.args.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    found = {argument.arg: None if default is None else _default_text(default) for argument, default in pairs}
    if (kind := _options_kind(cls)) is not None:
        own_defaults = {name: repr(value) for name, value in (_inherited_attribute(cls, "defaults") or {}).items()}
        found |= {
            name: own_defaults.get(name, text) for name, text in _shared_options(kind).items() if name not in found
        }
    order = (source.attribute("in_order") or "").split()
    return {name: found[name] for name in dict.fromkeys((*order, *found)) if name not in left_out}


def _shared_options(kind: str) -> dict[str, str | None]:
    """Name -> default of a dictionary of options, those of its bases first."""
    source = _sources()[kind]
    found = {name: text for base in source.bases if base in _sources() for name, text in _shared_options(base).items()}
    for field in source.node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            option = next(node for node in ast.walk(field.annotation) if isinstance(node, ast.Call))  # Option(default)
            found[field.target.id] = ast.unparse(option.args[0])
    return found


def _default_text(default: ast.expr) -> str:
    if isinstance(default, ast.Attribute) and default.attr.isupper():  # an enum of MONAI, whose values are strings
        return repr(default.attr.lower())
    return ast.unparse(default)


def _inherited_attribute(cls: str, name: str) -> Any:
    while cls in _sources():
        value = _sources()[cls].attribute(name)
        if value is not None:
            return value
        cls = next((base for base in _sources()[cls].bases if base in _sources()), "")
    return None


def _meaning(cls: str, option: str) -> str:
    """What the docstring of a class says of an option, or that of the class it points to."""
    place: str | None = cls
    while place is not None:
        said = _sources()[place].described.get(option)
        pointer = re.fullmatch(r"see `(\w+)`\.?", said or "")
        if said is not None and pointer is None:
            return said
        place = pointer[1] if pointer else _base(place)
    return ""


def _notes(cls: str) -> Iterator[str]:
    """What the class and its bases say of `**options` as a whole."""
    place: str | None = cls
    while place is not None:
        text = _sources()[place].described.get("**options", "")
        pointer = re.match(r"(?:see|those of) `(\w+)`[.;,]?", text)
        note = text[pointer.end() :].strip() if pointer else text
        if note:
            yield note[0].upper() + note[1:]
        place = pointer[1] if pointer and pointer[1] in _sources() else _base(place)


def _before_sections(paragraphs: Iterable[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        if re.match(r"(Args|Attributes|Shapes|Raises|Example|Reference)\b", paragraph):
            return
        yield paragraph


def _heading(text: str) -> list[str]:
    return [text, "-" * len(text)]


def _filled(text: str, indent: str = "  ") -> list[str]:
    plain = " ".join(text.split())
    return textwrap.wrap(
        plain, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _option_lines(options: Iterable[LossOption]) -> Iterator[str]:
    for option in options:
        yield f"  {option.name}{'' if option.default is None else f' = {option.default}'}"
        yield from _filled(option.meaning, " " * 6)


def _configuration(key: str | None, cls: str) -> Iterator[str]:
    config = loss_config(key, cls)
    if key is None:
        yield from _filled(_ABOUT_TRAIN.get(cls, "Not for `train`: its target is no map of labels."))
    else:
        yield f"  {train_command(key)}"
    yield ""
    yield "  In a MONAI config:"
    yield ""
    text = yaml.safe_dump({"loss": config}, sort_keys=False, allow_unicode=True)
    yield from textwrap.indent(text.rstrip(), "    ").splitlines()
    yield ""
    yield "  In Python:"
    yield ""
    targets = sorted(set(_targets(config)))
    ours = [target.removeprefix(f"{_PACKAGE}.") for target in targets if target.startswith(_PACKAGE)]
    yield f"    from monai_extra_losses import {', '.join(ours)}"
    for module, _, other in (target.rpartition(".") for target in targets if not target.startswith(_PACKAGE)):
        yield f"    from {module} import {other}"
    yield from textwrap.wrap(
        f"loss = {python_text(config)}",
        _WIDTH,
        initial_indent="    ",
        subsequent_indent=" " * 8,
        break_long_words=False,
    )


def train_command(key: str) -> str:
    """A command that trains with a loss of the table, and gives its own options the values that they have anyway."""
    config = loss_config(key, _class_of(key, loss_table()[key]))
    words: list[str] = []
    if (part := _part_of(key, config)) is not None:
        own, prefix = config["losses"][part], f"--loss::losses::{part}::"
        words += ["--loss::weights", str(config["weights"])]
    else:
        own, prefix = config, "--loss::"
    for name, value in own.items():
        if name not in ("_target_", "to_onehot_y", "softmax", "use_softmax", "losses"):
            words += [f"{prefix}{name}", str(value)]
    return f"monai-extra-losses train --data DIR --run RUN --loss {key} {shlex.join(words)}".rstrip()


def _value(option: LossOption) -> Any:
    """The default as a config can hold it; None where there is none, and for one that is a formula such as 4 / 3."""
    try:
        return ast.literal_eval(option.default or "None")
    except ValueError:
        return None


def _resolved(node: Any) -> Any:
    """A part of the table without what the training configs give by themselves."""
    if isinstance(node, list):
        return [_resolved(value) for value in node]
    if isinstance(node, Mapping):
        return {
            name: _resolved(value)
            for name, value in node.items()
            if name != "_desc_" and not (isinstance(value, str) and value in _LEFT_TO_DEFAULTS)
        }
    return _FOR_LABELS.get(node, node) if isinstance(node, str) else node


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _targets(value)
