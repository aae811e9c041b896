"""What is assumed of files whose header leaves something open or says two things: one sentence a kind, with a count."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

NO_ORIENTATION = "no orientation"
OTHER_QFORM = "other qform"
OTHER_SPACING = "other spacing"
LONE_INTERCEPT = "lone intercept"
SKEWED = "skewed"
NO_FRAME = "no frame"
NO_SPACING = "no spacing"
ROUNDED_LABELS = "rounded labels"
COARSE_LABELS = "coarse labels"
FOREIGN_FILES = "foreign files"

REMARKS = {
    NO_ORIENTATION: "the header gives no orientation (qform_code and sform_code are 0), so the first axis is taken to "
    "run from right to left, the second from back to front and the third from foot to head, with the spacing of pixdim",
    OTHER_QFORM: "qform and sform place the volume differently, and the sform is taken",
    OTHER_SPACING: "pixdim has another spacing than the sform, and the sform is taken",
    LONE_INTERCEPT: "the header has an intercept (scl_inter) without a slope (scl_slope), so the voxels are taken as "
    "stored, as the NIfTI standard has it",
    SKEWED: "the axes are not at right angles, and distances in mm are measured as if they were",
    NO_FRAME: "the header does not say how its axes lie in the patient, so its coordinates are taken to run to the "
    "left, to the back and to the head",
    NO_SPACING: "the header gives no spacing, so it is taken as 1 mm",
    ROUNDED_LABELS: "label values a little off whole numbers, such as 2.9999999, are taken as the whole numbers",
    COARSE_LABELS: "label ids are stored as floating-point numbers that do not hold each of them (float32 above "
    "16777216), so that the program that wrote them may have merged neighbouring ids",
    FOREIGN_FILES: "files beside the slices that are no DICOM are passed over",
}
"""Key -> sentence without its subject, the files."""

_WITHOUT_ORIENTATION = {NO_ORIENTATION, NO_FRAME}


def remark_sentences(found: Mapping[Path, Iterable[str]]) -> tuple[str, ...]:
    """One sentence per remark, with the number of files that it holds for.

    Args:
        found: file -> its remarks, for every file that was looked at.
    """
    files_of: dict[str, list[Path]] = {}
    for file, remarks in found.items():
        for remark in remarks:
            files_of.setdefault(remark, []).append(file)
    return tuple(
        f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''} (of {len(found)} files): {REMARKS[key]}."
        for key, files in sorted(files_of.items())
    )


def orientation_hint(first: Path, second: Path, remarks: Mapping[Path, Collection[str]]) -> str:
    """What to add of two files on different grids where the header of one gives no orientation; else nothing.

    Args:
        first, second: the files.
        remarks: file -> its remarks.
    """
    lacking = [file for file in (first, second) if _WITHOUT_ORIENTATION.intersection(remarks[file])]
    if len(lacking) == 1:
        other = second if lacking[0] == first else first
        return (
            f" The header of {lacking[0]} gives no orientation, so that this may be all: where both have their voxels "
            f"in one order, give it the affine of {other.name}, with nibabel.Nifti1Image(voxels, affine)."
        )
    for file in (first, second):
        if OTHER_QFORM in remarks[file]:
            return f" In {file} qform and sform differ and the sform is taken: is it the right one?"
    return ""
