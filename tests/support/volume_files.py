"""Volumes in many formats, as other programs write them."""

import gzip
import locale
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

SPACING = (0.7, 1.1, 2.5)
ORIGIN = (12.3, -45.6, 78.9)
_UID = "1.2.826.0.1.3680043.2.1125"


def rotation(*degrees: float) -> NDArray[np.float64]:
    """A rotation by angles about x, y and z."""
    transform = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(degrees))
    return np.reshape(transform.GetMatrix(), (3, 3))


DIRECTIONS = {
    "straight": np.eye(3),
    "oblique": rotation(20, -10, 35),
    "flipped": np.diag([-1.0, 1.0, 1.0]),  # left-handed
    "permuted": np.eye(3)[:, [2, 0, 1]],
    "oblique and flipped": rotation(-15, 25, 5) @ np.diag([1.0, -1.0, 1.0]),
}


def volume(
    voxels: NDArray[Any],
    direction: NDArray[np.float64] = DIRECTIONS["oblique"],
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = ORIGIN,
) -> sitk.Image:
    """Voxels of axes x, y, z on a grid."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def random_image(seed: int = 0, shape: Sequence[int] = (7, 6, 5), dtype: type = np.int16) -> NDArray[Any]:
    """Voxels with every value different from the next."""
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(dtype)


def block_label(shape: Sequence[int] = (7, 6, 5), ids: Sequence[int] = (1,), dtype: type = np.uint8) -> NDArray[Any]:
    """A block of each id in a background of 0."""
    label = np.zeros(shape, dtype)
    for number, value in enumerate(ids):
        label[1 + number % (shape[0] - 1), 1:4, 1:3] = value
    return label


def write(image: sitk.Image, file: Path) -> Path:
    """Write a file; its suffix says the format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file), useCompression=file.suffix != ".nii")
    return file


def write_dicom(
    image: sitk.Image,
    folder: Path,
    *,
    description: str = "Portal venous",
    series: int = 1,
    modality: str = "CT",
    leave_out: Sequence[int] = (),
    tags: Mapping[int, Mapping[str, str]] | None = None,
) -> Path:
    """Write a series slice by slice, in file names of another order.

    Args:
        image: of integers.
        folder: for the files.
        description, series, modality: of the series; `series` makes its UID.
        leave_out: slices not to write.
        tags: number of a slice -> further tags.
    """
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.reshape(image.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)
    count = image.GetSize()[2]
    for number in (n for n in range(count) if n not in leave_out):
        plane = image[:, :, number]
        position = image.TransformIndexToPhysicalPoint((0, 0, number))
        values = {
            "0008|0018": f"{_UID}.{series}.{number}",
            "0008|0060": modality,
            "0008|103e": description,
            "0020|000d": f"{_UID}.9",
            "0020|000e": f"{_UID}.{series}",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{x:.9g}" for x in position),
            "0020|0037": "\\".join(f"{x:.9g}" for x in (*direction[:, 0], *direction[:, 1])),
            **(tags or {}).get(number, {}),
        }
        for key, value in values.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{(number * 389 + 7) % 997:03d}_{series}.dcm"))
        writer.Execute(plane)
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer sets that of the process to "C", where text is ASCII
    return folder


def write_dicom_object(file: Path, storage_class: str) -> Path:
    """The first elements of a DICOM object without pixels."""
    value = storage_class.encode() + b"\0" * (len(storage_class) % 2)
    meta = b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01" + b"\x02\0\x02\0UI" + len(value).to_bytes(2, "little") + value
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0" + len(meta).to_bytes(4, "little") + meta)
    return file


def write_nifti(
    file: Path,
    voxels: NDArray[Any],
    affine: NDArray[np.float64],
    fields: Mapping[str, Any] | None = None,
    *,
    version: int = 1,
    endian: str = "<",
) -> Path:
    """Write a NIfTI file with a header that nibabel would not write.

    Args:
        file: .nii or .nii.gz.
        voxels: of axes x, y, z, as stored.
        affine: of qform and sform, both of code 1.
        fields: header field -> value; `pixdim` and `dim` from their first entry on.
        version: of NIfTI.
        endian: byte order of the file.
    """
    image_class, header_class = {
        1: (nibabel.Nifti1Image, nibabel.Nifti1Header),
        2: (nibabel.Nifti2Image, nibabel.Nifti2Header),
    }[version]
    stored = voxels.astype(voxels.dtype.newbyteorder(endian))
    empty = header_class(endianness=endian)
    empty.set_data_dtype(stored.dtype)
    image = image_class(stored, affine, header=empty)
    for set_form in (image.set_qform, image.set_sform):
        set_form(affine, code=1)
    content = bytearray(image.to_bytes())
    size = header_class.sizeof_hdr
    header = header_class(bytes(content[:size]), endian, check=False)
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name, value in (fields or {}).items():
        if np.ndim(value):
            header[name][: len(value)] = value
        else:
            header[name] = value
    content[:size] = header.binaryblock
    content[-stored.nbytes :] = stored.tobytes(order="F")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(bytes(content)) if file.name.lower().endswith(".gz") else bytes(content))
    return file
