"""The report of a comparison."""

from pathlib import Path

from monai_extra_losses.compare.analysis import analyse
from monai_extra_losses.compare.figure_files import figure_files
from monai_extra_losses.compare.report_markdown import report_markdown
from monai_extra_losses.compare.report_page import report_page
from monai_extra_losses.compare.results import ComparisonResults
from monai_extra_losses.compare.results_table import results_csv
from monai_extra_losses.data.storage import write_whole, writing


def write_report(results: ComparisonResults, out: Path, *, draws: int = 2000) -> list[Path]:
    """Write report.html, one file that opens offline, report.md, results.csv and figures/.

    Args:
        results: of the trials, so far as they got.
        out: folder.
        draws: of the bootstrap.

    Returns:
        What was written: the files, and the folder of the figures.

    Raises:
        WritingFailed: the storage does not take a file.
    """
    analysis = analyse(results, draws)
    texts = {
        out / "report.html": report_page(analysis),
        out / "report.md": report_markdown(analysis),
        out / "results.csv": results_csv(results),
    }
    drawings = figure_files(analysis)
    figures = out / "figures"
    if drawings:
        with writing(figures):
            figures.mkdir(parents=True, exist_ok=True)
    for path, text in (texts | {figures / name: svg for name, svg in drawings.items()}).items():
        write_whole(path, text)
    return [*texts, *([figures] if drawings else [])]
