"""NRRD and MetaImage, whose headers are text: what SimpleITK reads without complaint although it would be wrong."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.nifti import DEFLATE_RATIO
from monai_extra_losses.data.remarks import NO_FRAME, NO_SPACING

META_SUFFIXES = (".mha", ".mhd")


_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t", "double"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
}


_FRAMES = re.compile(r"(left|right)-(anterior|posterior)-(superior|inferior)(-time)?|[lr][ap][si]t?")


_MILLIMETRES = re.compile(r"mm|millimet(er|re)s?|\?|unknown|")


_LONGEST_HEADER = 1 << 20


_META_BYTES = {  # of a voxel; the sizes of the others differ between systems
    **{f"MET_{sign}CHAR": 1 for sign in ("", "U")},
    **{f"MET_{sign}SHORT": 2 for sign in ("", "U")},
    **{f"MET_{sign}INT": 4 for sign in ("", "U")},
    **{f"MET_{sign}LONG_LONG": 8 for sign in ("", "U")},
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}


@dataclass(frozen=True)
class _TextHeader:
    """The header of a NRRD or MetaImage file: field -> value, and where the voxels begin in a file that holds both."""

    fields: dict[str, str]
    end: int


def meta_header(path: Path) -> _TextHeader:
    """The names of the fields as MetaIO spells them."""
    start = _start_of(path)
    last = re.search(rb"^ElementDataFile[ \t]*=[ \t]*(.*?)\r?(\n|\Z)", start, re.MULTILINE)
    end = len(start) if last is None else last.end()
    pairs = (line.partition("=") for line in start[:end].decode("latin-1").splitlines())
    return _TextHeader({key.strip(): value.strip() for key, _, value in pairs}, end)


def nrrd_header(path: Path) -> _TextHeader:
    """The names of the fields in lower case."""
    start = _start_of(path)
    blank = re.search(rb"\r?\n\r?\n", start)
    end = len(start) if blank is None else blank.end()
    pairs = (line.partition(":") for line in start[:end].decode("latin-1").splitlines() if not line.startswith("#"))
    return _TextHeader(
        {key.strip().lower(): value.strip() for key, _, value in pairs if not value.startswith("=")}, end
    )


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_LONGEST_HEADER)
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable file, got an error ({error.strerror}).") from error


def meta_remarks(path: Path, header: _TextHeader) -> Iterable[str]:
    _refuse_other_units(path, [header.fields.get("DistanceUnits", "")])
    spacing = header.fields.get("ElementSpacing", header.fields.get("ElementSize"))
    if spacing is None:
        yield NO_SPACING
    else:
        _refuse_odd_spacing(path, spacing.split())
    if not {"TransformMatrix", "Orientation", "Rotation"} & header.fields.keys():
        yield NO_FRAME


def nrrd_remarks(path: Path, header: _TextHeader) -> Iterable[str]:
    for name in ("space units", "units"):
        _refuse_other_units(path, re.findall(r'"([^"]*)"', header.fields.get(name, "")))
    directions = re.findall(r"none|\([^)]*\)", header.fields.get("space directions", "").lower())
    spacings = header.fields.get("spacings", "").split()
    if not directions and not spacings:
        yield NO_SPACING
    elif len(directions) == 3 and "none" in directions:
        raise DatasetError(
            f"{path}: expected a direction of each axis, got {' '.join(directions)}; correct the header."
        )
    elif len(spacings) == 3:
        _refuse_odd_spacing(path, spacings)
    if not _FRAMES.fullmatch(header.fields.get("space", "").lower()):
        yield NO_FRAME


def _refuse_other_units(path: Path, units: Sequence[str]) -> None:
    for unit in units:
        if not _MILLIMETRES.fullmatch(unit.strip().lower()):
            raise DatasetError(
                f"{path}: expected millimetres, got a header in {unit!r}, which few programs read; "
                "write it anew with spacing and origin in mm."
            )


def _refuse_odd_spacing(path: Path, spacing: Sequence[str]) -> None:
    """ITK turns a negative spacing round, and takes 1 for one that is no number."""
    try:
        usable = all(math.isfinite(number) and number > 0 for number in map(float, spacing))
    except ValueError:
        usable = False
    if not usable:
        raise DatasetError(f"{path}: expected a spacing above 0, got {' '.join(spacing)} mm; correct the header.")


def refuse_cut_metaimage(path: Path, voxels: int) -> None:
    """MetaIO prints lines of its own about a file that is cut off, and ITK calls it missing."""
    header = meta_header(path)
    fields = header.fields
    if fields.get("ElementDataFile", "").upper() == "LOCAL":
        found = path.stat().st_size - header.end
    elif len(files := data_files(path)) == 1 and fields.get("HeaderSize", "0") == "0":
        found = files[0].stat().st_size
    else:
        return
    expected = voxels * _META_BYTES.get(fields.get("ElementType", ""), 0)
    if fields.get("CompressedData", "False").lower() in ("true", "1"):
        refuse_too_many(path, expected, found * DEFLATE_RATIO)
        expected = int(size) if (size := fields.get("CompressedDataSize", "")).isdecimal() else 0
    if found < expected:
        raise DatasetError(
            f"{path}: expected {expected} bytes of voxels, got {found}; the data end early, copy the file again."
        )


def refuse_cut_nrrd(path: Path, voxels: int) -> None:
    """ITK takes memory for all voxels that the header declares before it looks for them."""
    header = nrrd_header(path)
    files = data_files(path)
    if len(files) > 1:
        return
    found = files[0].stat().st_size if files else path.stat().st_size - header.end
    size = _NRRD_BYTES.get(header.fields.get("type", "").lower(), 0)
    # bytes of voxels that a byte of each encoding can stand for; in ASCII one is a number at most
    most = {"raw": 1, "gzip": DEFLATE_RATIO, "gz": DEFLATE_RATIO, "hex": 0.5, "ascii": size, "text": size, "txt": size}
    ratio = most.get(header.fields.get("encoding", "").lower())
    if ratio is not None:
        refuse_too_many(path, voxels * size, int(found * ratio))


def refuse_too_many(path: Path, declared: int, most: int) -> None:
    if declared > most:
        raise DatasetError(
            f"{path}: expected {declared} bytes of voxels, as the header declares, got {most} at most; the file is cut "
            "off or its header damaged, copy the file again."
        )


def data_files(path: Path) -> tuple[Path, ...]:
    """The files beside a header (.mhd, .nhdr) that hold its voxels, as far as it names them one by one and has them."""
    if not path.name.lower().endswith((".mhd", ".nhdr")):
        return ()
    text = _start_of(path).decode("utf-8", errors="replace")
    found = re.search(r"^(?:ElementDataFile *=|data ?file:)(.*)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if found is None:
        return ()
    names = [line.strip() for line in found[1].splitlines() if line.strip()]
    if len(names) == 1 and (counted := re.fullmatch(r"(\S*%0?\d*d\S*) +(\d+) +(\d+)( +\d+){0,2}", names[0])):
        names = [counted[1] % number for number in range(int(counted[2]), int(counted[3]) + 1)]
    return tuple(file for file in (path.parent / name for name in names) if file.exists() and not file.is_dir())
