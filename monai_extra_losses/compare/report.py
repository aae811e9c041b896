"""The report of a comparison."""

from pathlib import Path

from monai_extra_losses.compare.analysis import analyse
from monai_extra_losses.compare.report_markdown import report_markdown
from monai_extra_losses.compare.report_page import report_page
from monai_extra_losses.compare.results import ComparisonResults
from monai_extra_losses.compare.results_table import results_csv
from monai_extra_losses.data.storage import write_whole


def write_report(results: ComparisonResults, out: Path, *, draws: int = 2000) -> list[Path]:
    """Write report.html, one file that opens offline, report.md and results.csv.

    Args:
        results: of the trials, so far as they got.
        out: folder.
        draws: of the bootstrap.

    Returns:
        The files written.

    Raises:
        WritingFailed: the storage does not take a file.
    """
    analysis = analyse(results, draws)
    texts = {
        out / "report.html": report_page(analysis),
        out / "report.md": report_markdown(analysis),
        out / "results.csv": results_csv(results),
    }
    for path, text in texts.items():
        write_whole(path, text)
    return list(texts)
