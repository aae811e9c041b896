"""What holds of the whole: who imports whom, read from the sources, and that the list of losses has all of them."""

import ast
from pathlib import Path

from loss_list import ENTRIES, LOSSES, MECHANISMS, LossCase, LossEntry, labels_like, loss_cases
from references import REGRESSION

import monai_extra_losses
from monai_extra_losses import losses
from monai_extra_losses.cli import entry
from monai_extra_losses.losses.base import SegmentationLoss
from monai_extra_losses.losses.regression import RegressionLoss

PACKAGE = Path(monai_extra_losses.__file__).parent
NAME = monai_extra_losses.__name__
# From the ground up. A folder imports from those on floors below its own, and from itself.
FLOORS = [
    {"__init__", "versions", "file_content", "configs"},
    {"ops", "data", "report"},
    {"losses", "transforms"},
    {"drop_in", "engines", "schedules"},
    {"bundle"},
    {"doctor", "integrations"},
    {"compare"},
    {"cli"},
    {"__main__"},
]
# The losses need these alone; `[bundle]` brings the rest.
# and scikit-image where skeletons are asked for; triton and numba where they are installed
OF_THE_LOSSES = {"torch", "numpy", "monai", "edt", "triton", "numba"}
STANDARD = {"__future__", *__import__("sys").stdlib_module_names}
# Former places of names, which hand on what is in `bundle` now.
FORMER = {"handlers.py", "inference.py", "workflow.py", "data/volume_cache.py", "data/inputs.py"}

# Bases of public losses, which are no losses themselves.
BASES = {"RegressionLoss", "DistanceLoss"}

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


def test_nothing_imports_upward() -> None:
    wrong = []
    for file in FILES:
        own = file.removesuffix(".py").split("/")[0]
        if file in FORMER or file == "__init__.py":
            continue
        wrong += [
            f"{file} imports {module}"
            for module in imports_of(file)
            if module.split(".")[0] == NAME
            and folder_of(module) != own
            and not floor_of(folder_of(module)) < floor_of(own)
        ]
    assert not wrong, "\n".join(wrong)


def test_losses_need_no_extra() -> None:
    wrong = []
    for file in FILES:
        if file.split("/")[0] in {"ops", "losses", "transforms", "drop_in.py"}:
            packages = {module.split(".")[0] for module in imports_of(file)}
            wrong += [f"{file} imports {package}" for package in packages - OF_THE_LOSSES - STANDARD - {NAME}]
    assert not wrong, "\n".join(wrong)


def test_a_package_that_may_be_missing_is_said_to_come_with_the_extra() -> None:
    known = OF_THE_LOSSES | STANDARD | {NAME, *entry._BUNDLE_MODULES}
    imported = {(file, module.split(".")[0]) for file in FILES for module in imports_of(file)}
    # a folder or file each
    extras = {
        "integrations/nnunet/": "nnunetv2",
        "compare/": "submitit",
        "bundle/dicom_segmentation.py": "highdicom",
        "data/dicom_seg.py": "highdicom",
    }
    wrong = [
        f"{file} imports {package}"
        for file, package in sorted(imported)
        if package not in known and not any(file.startswith(place) and package == of for place, of in extras.items())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_data_set_is_checked_without_torch() -> None:
    """`check` imports no torch: its folder does so inside the functions that need it, or not at all."""
    wrong = []
    for file in FILES:
        if file.startswith("data/") and file not in FORMER:
            for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                heavy = {"torch", "monai", "ignite"}
                wrong += [f"{file} imports {name}" for name in names if name.split(".")[0] in heavy]
    assert not wrong, "\n".join(wrong)


def test_private_names_stay_in_their_module() -> None:
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(NAME):
                private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                wrong += [f"{file} imports {name} from {node.module}" for name in private]
    assert not wrong, "\n".join(wrong)


def test_the_list_of_the_tests_is_complete() -> None:
    """Every public segmentation loss has an entry, so that the generic tests run over it, and every loss is public."""
    classes = {name: value for name in losses.__all__ if isinstance(value := getattr(losses, name), type)}
    public = {name for name, cls in classes.items() if issubclass(cls, SegmentationLoss)}
    regression = {name for name, cls in classes.items() if issubclass(cls, RegressionLoss)}
    assert {entry.name for entry in LOSSES} == public - regression, "see tests/support/loss_list.py"
    assert set(REGRESSION) == regression, "see tests/support/references.py"
    assert len(ENTRIES) == len(LOSSES)
    unnamed = {
        cls.__name__
        for cls in all_subclasses(SegmentationLoss)
        if cls.__module__.startswith(f"{NAME}.losses.") and cls.__module__ != f"{NAME}.losses.base"
    }
    hidden = {name for name in unnamed if not name.startswith("_") and name not in losses.__all__}
    assert hidden <= BASES, "not in losses/__init__.py"


def all_subclasses(cls: type) -> set[type]:
    return {cls}.union(*(all_subclasses(own) for own in cls.__subclasses__()))


def test_every_mechanism_is_one_of_the_list() -> None:
    """A loss whose kernel nothing else has is one of those for which what is written once is tested."""
    for name, activation in MECHANISMS.values():
        assert activation in ENTRIES[name].activations
    assert {ENTRIES[name].family for name, _ in MECHANISMS.values()} == {entry.family for entry in LOSSES}
    kinds = {kind for name, activation in MECHANISMS.values() for kind in kinds_of_terms(ENTRIES[name], activation)}
    for case in loss_cases(variants=False):
        assert kinds_of_terms(case.entry, case.activation) <= kinds, f"{case} computes what no mechanism does"


def kinds_of_terms(entry: LossEntry, activation: str) -> set[str]:
    """What the pass computes for a loss."""
    loss = entry.make(activation)
    scores = LossCase(entry, activation).scores(1, 3, 4, 5)
    terms = loss.terms(loss.prepare(scores, labels_like(scores)))
    return {type(term).__name__ for _, term in terms.values()}


def test_files_are_read_as_data() -> None:
    """As SECURITY.md says: no pickle is loaded, and no YAML with Python in it."""
    calls = [
        (file, ast.unparse(node.func), ast.unparse(node))
        for file in FILES
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    loads = [(file, text) for file, name, text in calls if name == "torch.load"]
    assert len(loads) == 2
    assert [pair for pair in loads if "weights_only=True" not in pair[1]] == []
    unsafe = {"pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "np.load", "joblib.load"}
    assert [(file, name) for file, name, _ in calls if name in unsafe] == []
    loaders = [text for _, name, text in calls if name == "yaml.load"]
    assert [text for text in loaders if not any(safe in text for safe in ("SafeLoader", "BaseLoader"))] == []
