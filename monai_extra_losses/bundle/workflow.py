"""The workflow behind the short command line: MONAI's `ConfigWorkflow`, which looks at every option before it runs.

    python -m monai.bundle run --workflow_name monai_extra_losses.bundle.SegmentationWorkflow --config_file ...

MONAI ignores a mistyped option and reports a mistyped loss with a page of traceback; here both are one sentence.
"""

import ast
import contextlib
import copy
import importlib.util
import inspect
import os
import pydoc
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow, ReferenceResolver

from monai_extra_losses.bundle.error_text import first_cause, nearest_name, said_of
from monai_extra_losses.bundle.processes import is_first_process, lost_processes_as_sentences
from monai_extra_losses.bundle.training_options import FILE_OPTIONS
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import storage_errors_as_sentences, write_whole
from monai_extra_losses.versions import PackageMissing

_TABLE = "losses"


TRACKING_OPTIONS = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")  # MONAI's, beside --tracking


_GIVEN = {
    "include_background": "@include_background",
    "to_onehot_y": "@to_onehot_y",
    "softmax": "@softmax",
    "use_softmax": "@softmax",
    "sigmoid": "@sigmoid",
}
"""The options by which a loss of MONAI's conventions, as those of the table, reads the data."""


_OWN_OPTIONS = frozenset(inspect.signature(ConfigWorkflow.__init__).parameters) - {"self", "override"}


class SegmentationWorkflow(ConfigWorkflow):
    """Runs a config of this bundle.

    Text among the options reaches the config as it is, although MONAI's parser makes `::` of every `#`. `$`, `@ID` and
    `%` at its beginning keep MONAI's meaning.

    Args:
        config_file: one config file, or several that are merged in order.
        options: MONAI's own (`logging_file`, `workflow_type`, ...), and overrides of config values by id, such as
            `epochs` or `losses::tversky::alpha`. `loss` may be the bare name of an entry of the table of losses, and
            `loss::alpha` is an option of the chosen entry. It may also be a class of one's own, `module.Class`, that
            can be imported from the current folder; options that it shares with MONAI's losses, as `softmax`,
            are given to it as to those of the table.

    Raises:
        StartUpRefused: an unknown option or loss, with the nearest known name; a class that cannot be imported, or is
            no loss; a package of an extra that is missing; an expression, a reference or a macro that leads to nothing.
        WritingFailed: by `initialize`, `run` and `finalize`; the storage took no more.
        TrainingStopped: by these; another process of a distributed run is gone.
    """

    def __init__(self, config_file: str | Sequence[str], **options: Any) -> None:
        own = {key: value for key, value in options.items() if key in _OWN_OPTIONS}
        overrides = {key: value for key, value in options.items() if key not in _OWN_OPTIONS}
        parser = ConfigParser()
        parser.read_config(f=config_file)
        config = parser.get()
        if own.get("tracking") is not None:
            _refuse_tracking(own["tracking"], config)
            config = {**dict.fromkeys(TRACKING_OPTIONS), **config}
        checked = checked_overrides(config, overrides)
        kept = {key: _kept_by_the_parser(key, value, parser) for key, value in checked.items()}
        super().__init__(config_file, **own, **kept)
        self._given = {key: value for key, value in kept.items() if isinstance(value, str)}

    def initialize(self) -> Any:
        """Build what the config asks for; a value that the chosen loss refuses is one sentence too."""
        for key, text in self._given.items():
            _refuse_dead_end(key, text, self.parser)
        try:
            with storage_errors_as_sentences(), lost_processes_as_sentences(), self._expressions_as_sentences():
                initialized = super().initialize()
                self._write_config()
            return initialized
        except (RuntimeError, ImportError) as error:
            if isinstance(missing := first_cause(error), PackageMissing):
                raise StartUpRefused(f"{missing}".replace("expected", "Expected", 1)) from None
            target = _chosen_loss(self.parser.get())
            if target and f"'{target}'" in str(error) and isinstance(cause := first_cause(error), Exception):
                if isinstance(cause, ValueError | TypeError):
                    raise StartUpRefused(f"{target}: {cause}") from None
                raise StartUpRefused(f"{said_of(error)}.") from None
            raise

    def run(self) -> Any:
        """Run it."""
        with storage_errors_as_sentences(), lost_processes_as_sentences(), self._expressions_as_sentences():
            return super().run()

    def finalize(self) -> Any:
        """End it."""
        with storage_errors_as_sentences(), lost_processes_as_sentences():
            return super().finalize()

    @contextlib.contextmanager
    def _expressions_as_sentences(self) -> Iterator[None]:
        """One sentence for an expression of the command line that cannot be evaluated."""
        try:
            yield
        except (RuntimeError, SyntaxError) as error:
            said, cause = str(error), cast(BaseException, error)
            while cause.__cause__ is not None:
                cause = cause.__cause__
                said += str(cause)
            for key, text in self._given.items():
                item = self.parser.ref_resolver.items.get(key)
                if text.startswith("$") and (repr(item) in said or not _is_python(text[1:])):
                    raise StartUpRefused(
                        f"Expected {key} to be an expression that Python can evaluate, got {text!r} "
                        f"({type(cause).__name__}: {cause})."
                    ) from None
            raise

    def _write_config(self) -> None:
        """Leave the config of a training, merged and with its overrides, in the run folder."""
        config = {key: value for key, value in self.parser.get().items() if key != "_meta_"}
        if str(config.get("setup", {}).get("_target_", "")).endswith(".TrainingSetUp") and is_first_process():
            setup = self.parser.get_parsed_content("setup")
            if setup.nothing_to_do:
                return
            write_whole(setup.folder.config, yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))


def _kept_by_the_parser(key: str, value: Any, parser: ConfigParser) -> Any:
    """A value such that MONAI's parser hands on what it is.

    Args:
        key: of the option.
        value: text, in which a first `$`, `@` and `%` mean what they mean to MONAI; a path, in which they mean nothing;
            lists and objects of these; anything else.
        parser: of the config files.
    """
    if isinstance(value, Mapping):
        return {name: _kept_by_the_parser(f"{key}::{name}", part, parser) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_kept_by_the_parser(f"{key}::{i}", part, parser) for i, part in enumerate(value))
    is_path = isinstance(value, os.PathLike)
    text = os.fspath(value) if is_path else value
    if not isinstance(text, str):
        return value
    references = ReferenceResolver.match_refs_pattern(text)
    of_file = key in FILE_OPTIONS
    if not is_path:
        leads_on = all(reference in parser for reference in references) if of_file else True
        if text.startswith("$") or (text.startswith("%") and not of_file) or (references and leads_on):
            return text
    if (
        of_file or is_path
    ) and "::" in text:  # which a path from elsewhere has of a `#`; as an object it is above suspicion
        return f"$__import__('pathlib').Path({_quoted(text)})"
    rewritten = "#" in text or re.search("[@%]::", text) or references or text.startswith(("$", "%"))
    return f"${_quoted(text)}" if rewritten else text


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _quoted(text: str) -> str:
    """Python's notation of a text, without a sign that means something to MONAI's parser."""
    return re.sub("[#@%:]", lambda sign: f"\\x{ord(sign[0]):02x}", ascii(text))


def _refuse_dead_end(key: str, text: str, parser: ConfigParser) -> None:
    """Refuse a reference or a macro that leads nowhere."""
    for reference in ReferenceResolver.match_refs_pattern(text):
        if (name := reference.split("::")[0]) and name not in parser:
            raise StartUpRefused(
                f"Expected {key} to refer to a value of the config, got {text!r}{nearest_name(name, parser.get())}."
            )
    if text.startswith("%"):
        file, name = ConfigParser.split_path_id(text[1:])
        try:
            (ConfigParser(ConfigParser.load_config_file(file)) if file else parser)[name]
        except Exception as error:
            raise StartUpRefused(
                f"Expected {key} to be a macro (%) that names a value of the config or of another file, got {text!r} "
                f"({error})."
            ) from None


def _plain(node: Any) -> Any:
    """A part of a config as YAML can hold it."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node if isinstance(node, str | int | float | bool | None) else str(node)


def checked_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides as MONAI takes them, once each is known to the config.

    Args:
        config: content of the config files.
        overrides: id -> value.

    Raises:
        StartUpRefused: the first id or loss that the config does not know, with the nearest that it does.
    """
    checked = {key.replace("#", "::"): value for key, value in overrides.items()}
    if any(key.endswith("::_target_") for key in checked):
        _import_from_current_folder()
    loss = checked.get("loss", config.get("loss"))
    name = _name_in_table(loss)
    if name is not None and "." in name:
        checked = {"loss": _own_loss(name), **{key: value for key, value in checked.items() if key != "loss"}}
    elif name is not None:
        checked = _with_loss_of_table(name, config.get(_TABLE, {}), checked)
    # options are those of the class that will be built
    built = copy.deepcopy(dict(config))
    if isinstance(checked.get("loss"), Mapping):
        built["loss"] = checked["loss"]
    for key, value in checked.items():
        if key.endswith("::_target_") and isinstance(node := _node(built, key.split("::")[:-1]), dict):
            node["_target_"] = value
    for key in checked:
        _refuse_unknown(built, key.removeprefix("+"))
    return checked


def _with_loss_of_table(name: str, table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with those of `loss` made overrides of an entry of the table."""
    if not table:
        raise StartUpRefused(
            f"Expected configs/losses.yaml among the config files for the loss {name}; "
            "give \"['configs/train.yaml','configs/losses.yaml']\" as --config_file."
        )
    if name not in table:
        raise StartUpRefused(
            f"There is no loss {name!r}{nearest_name(name, table)}; `monai-extra-losses list` prints them all, and a "
            "class of your own is named as module.Class."
        )
    of_table = {
        f"{_TABLE}::{name}{key.removeprefix('loss')}" if key.startswith("loss::") else key: value
        for key, value in overrides.items()
    }
    return of_table | ({"loss": f"@{_TABLE}::{name}"} if "loss" in overrides else {})


def _name_in_table(loss: Any) -> str | None:
    """`tversky` of "@losses::tversky" and of "tversky"; None for a component, an expression or a macro."""
    if not isinstance(loss, str) or loss.startswith(("$", "%")):
        return None
    reference = loss.removeprefix("@").replace("#", "::")
    return reference.removeprefix(f"{_TABLE}::") if "::" in reference or not loss.startswith("@") else None


def _refuse_tracking(tracking: Any, config: Mapping[str, Any]) -> None:
    """Refuse a tracking that MONAI would fail on with a traceback."""
    if "train" not in config or str(config.get("setup", {}).get("_target_")).endswith("EvaluationSetUp"):
        raise StartUpRefused(
            f"Expected tracking with a training, got {tracking!r} with something else; "
            "an evaluation writes its numbers to summary.csv and cases.csv."
        )
    if not isinstance(tracking, str):
        return
    if tracking != "mlflow" and not Path(tracking).is_file():
        raise StartUpRefused(f"Expected tracking to be mlflow or a file of MONAI's settings for it, got {tracking!r}.")
    needed = ["mlflow"] if os.environ.get("MLFLOW_TRACKING_URI") else ["mlflow", "sqlalchemy", "alembic"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if tracking == "mlflow" and missing:
        raise StartUpRefused(
            f"Expected {' and '.join(needed)} for --tracking mlflow, got an installation without {', '.join(missing)}; "
            "install them with: pip install mlflow"
        )


def _own_loss(path: str) -> dict[str, Any]:
    """The component of a class `module.Class`, importable from the current folder."""
    if path.endswith(".py") or "/" in path:
        module = Path(path).stem
        raise StartUpRefused(
            f"Expected loss to be a name of the table or module.Class, got the file {path!r}; "
            f"give {module}.NAME of a class in it, from its folder."
        )
    _import_from_current_folder()
    parts = path.split(".")
    found: Any = None
    for depth in range(len(parts) - 1, 0, -1):
        found = _imported(".".join(parts[:depth]), path)
        if found is not None:
            break
    if found is None:
        raise StartUpRefused(
            f"There is no loss {path!r}: no module {parts[0]!r} can be imported from the current folder "
            f"({os.getcwd()}) or from what is installed."
        )
    for part in parts[depth:]:
        if not hasattr(found, part):
            losses = [name for name, value in vars(found).items() if _is_loss(value)]
            raise StartUpRefused(f"There is no {part!r} in {'.'.join(parts[:depth])}{nearest_name(part, losses)}.")
        found = getattr(found, part)
    if not _is_loss(found):
        kind = "a class of another kind" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise StartUpRefused(
            f"Expected loss to be a class of torch.nn.Module with forward(scores, label), got {path}, {kind}; "
            "write one that calls it."
        )
    parameters = inspect.signature(found).parameters
    return {"_target_": path, **{name: value for name, value in _GIVEN.items() if name in parameters}}


def _is_loss(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, torch.nn.Module)


def _imported(module: str, path: str) -> Any:
    """A module; None where there is none of that name."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (module == missing or module.startswith(f"{missing}.")):
            return None
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        file, line = frames[-1].filename, frames[-1].lineno
        if isinstance(error, SyntaxError) and error.filename:
            file, line = error.filename, error.lineno
        raise StartUpRefused(
            f"The loss {path} cannot be imported: {type(error).__name__}: "
            f"{(str(error).strip().splitlines() or ['no message'])[0]} ({Path(file).name}, line {line})."
        ) from None


def _import_from_current_folder() -> None:
    """As `python -m` does; a script, as the command is, has its own folder on the path instead."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def _chosen_loss(config: Mapping[str, Any]) -> str | None:
    loss = config.get("loss")
    name = _name_in_table(loss)
    entry = config.get(_TABLE, {}).get(name) if name is not None else loss
    return entry.get("_target_") if isinstance(entry, Mapping) else None


def _node(config: Any, parts: Iterable[str]) -> Any:
    for part in parts:
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config


def _refuse_unknown(config: Mapping[str, Any], key: str) -> None:
    parts = key.split("::")
    for depth, part in enumerate(parts):
        node = _node(config, parts[:depth])
        if isinstance(node, Mapping):
            known = _known_options(node)
            if known is not None and part not in known:
                where = f" of {'::'.join(parts[:depth])}" if depth else ""
                listed = "" if depth == 0 else f"; known are {', '.join(sorted(k for k in known if k[0] != '_'))}"
                raise StartUpRefused(f"There is no option {part!r}{where}{nearest_name(part, known)}{listed}.")
            if part not in node:
                return  # an argument of a component that the config leaves to its default
        elif not isinstance(node, list):
            raise StartUpRefused(f"There is no option {key!r}: {'::'.join(parts[:depth])} is a single value.")


def _known_options(node: Mapping[str, Any]) -> set[str] | None:
    """What a part of the config may hold: its keys, and for a component its arguments; None when that is open."""
    known = set(node)
    if "_target_" not in node:
        return known
    target = node["_target_"]
    if not isinstance(target, str) or "." not in target:
        return None
    component = pydoc.locate(target)
    if component is None:
        raise StartUpRefused(f"There is no class {target!r}; give the full path of one that can be imported.")
    parameters = inspect.signature(component).parameters.values()  # type: ignore[arg-type]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return known | {parameter.name for parameter in parameters} | ConfigComponent.non_arg_keys
