"""Who imports whom: the borders of the folders, read from the sources."""

import ast
from pathlib import Path

import pytest

import monai_extra_losses
from monai_extra_losses.cli import entry

PACKAGE = Path(monai_extra_losses.__file__).parent
NAME = monai_extra_losses.__name__
# From the ground up. A folder imports from those on floors below its own, and from itself.
FLOORS = [
    {"__init__", "versions", "file_content", "configs"},
    {"ops", "data", "report"},
    {"losses", "transforms"},
    {"drop_in", "engines", "schedules"},
    {"bundle"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
# The losses need these alone; `[bundle]` brings the rest.
OF_THE_LOSSES = {"torch", "numpy", "monai", "edt", "triton"}
STANDARD = {"__future__", *__import__("sys").stdlib_module_names}
# Former places of names, which hand on what is in `bundle` now.
FORMER = {"handlers.py", "inference.py", "workflow.py", "data/volume_cache.py", "data/inputs.py"}

FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(folder: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if folder in floor)


def imports_of(file: str) -> set[str]:
    """Modules that a file imports, also inside functions; not those of type checking alone."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file not in FORMER and file != "__init__.py"])
def test_nothing_imports_upward(file: str) -> None:
    own = file.removesuffix(".py").split("/")[0]
    for module in imports_of(file):
        if module.split(".")[0] == NAME and folder_of(module) != own:
            assert floor_of(folder_of(module)) < floor_of(own), f"{file} imports {module}"


@pytest.mark.parametrize("file", [f for f in FILES if f.split("/")[0] in {"ops", "losses", "transforms", "drop_in.py"}])
def test_losses_need_no_extra(file: str) -> None:
    packages = {module.split(".")[0] for module in imports_of(file)}
    assert packages <= OF_THE_LOSSES | STANDARD | {NAME}


@pytest.mark.parametrize("file", FILES)
def test_a_package_that_may_be_missing_is_said_to_come_with_the_extra(file: str) -> None:
    packages = {module.split(".")[0] for module in imports_of(file)}
    assert packages <= OF_THE_LOSSES | STANDARD | {NAME, *entry._BUNDLE_MODULES}


def test_a_data_set_is_checked_without_torch() -> None:
    """`check` imports no torch: its folder does so inside the functions that need it, or not at all."""
    for file in FILES:
        if file.startswith("data/") and file not in FORMER:
            tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
            for node in tree.body:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.split(".")[0] in {"torch", "monai", "ignite"} for name in names), file


@pytest.mark.parametrize("file", FILES)
def test_private_names_stay_in_their_module(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(NAME):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert not private, f"{file} imports {private} from {node.module}"
