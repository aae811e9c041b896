"""What docstrings say of other libraries names a version, and is printed by a script that runs them."""

import importlib.util
import re
from pathlib import Path

import monai
import pytest
import remarks

SOURCES = sorted((Path(__file__).parents[1] / "monai_extra_losses/losses").glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_remark_on_another_library_names_its_version(path: Path) -> None:
    for library in ("kornia", "Keras", "PyMIC"):
        mentions = re.findall(rf"{library}.?.?\w*", path.read_text())
        assert all(re.match(rf"{library} \d", mention) for mention in mentions), mentions


def test_the_script_prints_each_library_or_says_that_it_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    remarks.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"monai {monai.__version__}"
    assert "  shapes of reduction='none' and 'sum': [(), ()]" in lines
    assert "  change with another third class: 0" in lines
    for module, distribution, _ in remarks.REMARKS:
        installed = importlib.util.find_spec(module.partition(".")[0]) is not None
        assert any(line.startswith(f"{distribution}: left out: ") for line in lines) != installed
