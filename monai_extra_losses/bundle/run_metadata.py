"""metadata.json of a run: what MONAI's exports and checks say of its network."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses import config_dir
from monai_extra_losses.bundle.run_record import RunRecord


def metadata_of_run(
    bundle: Mapping[str, Any] | None, record: RunRecord, channels: Sequence[str] | None = None
) -> dict[str, Any]:
    """The bundle's metadata.json with the channels and classes of a run.

    MONAI's parser reads the file, makes `::` of `#` in it and evaluates text that begins with `$`. In names these
    signs, and `@` and `%` at their beginning, are therefore `_`.

    Args:
        bundle: content of the bundle's metadata.json; None or {}: of the one that comes with this package.
        record: of the run.
        channels: names of the image's channels.
    """
    if not bundle or "network_data_format" not in bundle:
        bundle = json.loads((config_dir() / "metadata.json").read_text(encoding="utf-8"))
    content = copy.deepcopy(dict(bundle))
    formats = content["network_data_format"]
    # instance norm needs two voxels at the lowest level
    shape = [f"{2 * multiple}*n" for multiple in record.patch_multiples]
    names = list(record.labels.values() if record.regions is None else record.regions)
    channels = channels or [f"channel_{i}" for i in range(record.in_channels)]
    formats["inputs"]["image"] |= {
        "num_channels": record.in_channels,
        "spatial_shape": shape,
        "channel_def": _numbered(channels),
    }
    formats["outputs"]["pred"] |= {
        "num_channels": record.num_classes,
        "spatial_shape": list(shape),
        "channel_def": _numbered(names),
    }
    values = ", ".join(f"{value} {_harmless(name)}" for value, name in record.labels.items())
    content["label_classes"] = f"label map of the values {values}"
    content["pred_classes"] = f"one channel of scores per {'class' if record.regions is None else 'region'}"
    return content


def differs_from_run(metadata: Mapping[str, Any], record: RunRecord) -> bool:
    """Whether a metadata.json speaks of other channels or classes than a run; one that says nothing does not."""
    try:
        theirs, ours = (
            (content["inputs"]["image"]["num_channels"], content["outputs"]["pred"]["channel_def"])
            for content in (metadata["network_data_format"], metadata_of_run(None, record)["network_data_format"])
        )
        shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
        sizes = zip(shape, record.patch_multiples, strict=True)
        multiples = [(int(s.partition("*")[0]), m) for s, m in sizes if isinstance(s, str) and s.endswith("*n")]
    except (LookupError, TypeError, ValueError):
        return False
    return theirs != ours or any(given % (2 * multiple) for given, multiple in multiples)


def channel_names(file: Path) -> list[str] | None:
    """Names of the image's channels in the metadata.json of a run; None where it does not tell."""
    try:
        formats = json.loads(file.read_text(encoding="utf-8"))["network_data_format"]
        return [str(name) for name in formats["inputs"]["image"]["channel_def"].values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(number): _harmless(name) for number, name in enumerate(names)}


def _harmless(name: str) -> str:
    return re.sub(r"^[$@%]|#|(?<=[@%])::", "_", name)
