"""Damaged NIfTI files and dataset.json, given to the commands; a Markdown table of what survives.

    python benchmarks/fuzz.py [--cases 3000] [--seed 0] [--only GROUP]

A case survives where the command succeeds and has read what nibabel reads, or ends in sentences that name the file, and
leaves the input and what was in the output as they were. A traceback, a hang, gigabytes of memory and a wrong volume
lose it. Each group runs in processes of its own, which may take 2 GiB more than they have at their start and a minute
per case. Exit code 1 where a case is lost; the same seed makes the same cases.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from monai_extra_losses.cli import main as command_line
from monai_extra_losses.data.nifti import is_one_grid, open_nifti

_SECONDS = 60
_MEMORY = 2 << 30
_SHAPE = (12, 11, 10)
_MOST_LINES = 40
_LINE = 20_000  # a value in a sentence is cut, a path is not

# ---- damage: NIfTI ---------------------------------------------------------------------------------------------------

_NUMBERS = (0, 1, -1, 2, 3, 5, 7, 8, 127, 255, 256, 300, 32767, -32768, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1e-45, 1e-30, 0.5, 1.0, 2.0, 349.0, 353.0, 368.0, 1e30, -1e30, np.nan, np.inf, -np.inf, -5.0)
_VALUES = (0.5, 1e-7, 255, -1, 2**31, 1e30, -1e30, np.nan, np.inf, -np.inf)


def _volume(dice: random.Random, label: bool) -> Any:
    rng = np.random.default_rng(dice.getrandbits(32))
    voxels = rng.integers(0, 900, _SHAPE)
    if label:
        voxels = np.zeros(_SHAPE, int)
        voxels[2:6, 2:7, 2:6], voxels[7:9, 3:6, 3:6] = 1, 2
    return voxels.astype(dice.choice([np.uint8, np.int16, np.float32] if label else [np.int16, np.uint16, np.float32]))


def _packed(content: bytes, file: Path) -> bytes:
    return gzip.compress(content, 1) if file.name.endswith(".gz") else content


def nifti_bytes(dice: random.Random, label: bool, voxels: Any = None) -> bytearray:
    """A whole file, uncompressed: NIfTI-1 or NIfTI-2, of either byte order."""
    kind = dice.choice([nibabel.Nifti1Image, nibabel.Nifti2Image])
    voxels = _volume(dice, label) if voxels is None else voxels
    order = dice.choice("<>")
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype.newbyteorder(order))
    image = kind(voxels, np.diag([1.5, 1.0, 2.0, 1.0]), header)
    for form in (image.set_qform, image.set_sform):
        form(image.affine, code=1)
    return bytearray(image.to_bytes())


def _header_of(content: bytearray) -> Any:
    kind = nibabel.Nifti2Header if content[4:7] == b"n+2" else nibabel.Nifti1Header
    order = "<" if int.from_bytes(content[:4], "little") in (348, 540) else ">"
    return kind(bytes(content[: kind.sizeof_hdr]), order, check=False)


def header_field(dice: random.Random, file: Path, label: bool) -> None:
    """One to three fields of the header get extremes."""
    content = nifti_bytes(dice, label)
    header = _header_of(content)
    for _ in range(dice.choice([1, 1, 2, 3])):
        name = dice.choice(header.keys())
        field = header[name]
        if field.dtype.kind == "S":
            header[name] = dice.choice([b"", b"ni1", b"n+1", b"n+3", b"\xff\xfe\x00\x01"])[: field.dtype.itemsize]
            continue
        whole = field.dtype.kind in "iu"
        value = dice.choice(_NUMBERS if whole else _FLOATS)
        if whole:
            info = np.iinfo(field.dtype)
            value = min(max(value, info.min), info.max)
        if field.ndim:
            field[dice.randrange(len(field))] = value
        else:
            header[name] = value
    content[: len(header.binaryblock)] = header.binaryblock
    file.write_bytes(_packed(bytes(content), file))


def header_bytes(dice: random.Random, file: Path, label: bool) -> None:
    """Bytes of the header are flipped."""
    content = nifti_bytes(dice, label)
    for _ in range(dice.randint(1, 6)):
        content[dice.randrange(_header_of(nifti_bytes(random.Random(0), label)).sizeof_hdr + 4)] = dice.randrange(256)
    file.write_bytes(_packed(bytes(content), file))


def file_bytes(dice: random.Random, file: Path, label: bool) -> None:
    """Bytes of the file, compressed where it is, are flipped."""
    content = bytearray(_packed(bytes(nifti_bytes(dice, label)), file))
    for _ in range(dice.randint(1, 4)):
        content[dice.randrange(len(content))] = dice.randrange(256)
    file.write_bytes(content)


def lengths(dice: random.Random, file: Path, label: bool) -> None:
    """The file is cut, has a tail, or is made of several members."""
    plain = bytes(nifti_bytes(dice, label))
    content = _packed(plain, file)
    half = len(plain) // 2
    content = dice.choice(
        [
            content[: dice.randrange(len(content))],
            _packed(plain[: dice.randrange(len(plain))], file),
            content + dice.randbytes(dice.randint(1, 50)),
            content + bytes(dice.randint(1, 500)),
            _packed(plain[:half], file) + _packed(plain[half:], file),
            content[:-8] + dice.randbytes(8),
            b"",
            plain,
            gzip.compress(content),
            b'{"this is": "text"}\n' * 50,
        ]
    )
    file.write_bytes(content)


def extensions(dice: random.Random, file: Path, label: bool) -> None:
    """A header extension whose esize lies."""
    content = nifti_bytes(dice, label)
    header = _header_of(content)
    size, order = header.sizeof_hdr, header.endianness
    added = dice.choice([16, 32, 4096])
    claimed = dice.choice([0, 1, 7, 8, 15, 16, 32, 2**31 - 1, -16, added])
    block = np.array([claimed, dice.choice([0, 4, 6, -1])], f"{order}i4").tobytes() + dice.randbytes(added - 8)
    header["vox_offset"] = size + 4 + (added if dice.random() < 0.7 else dice.choice([0, 8, added * 2]))
    whole = header.binaryblock + b"\1\0\0\0" + block + bytes(content[size + 4 :])
    file.write_bytes(_packed(whole, file))


def voxel_values(dice: random.Random, file: Path, label: bool) -> None:
    """Voxels that no label has, and few images; other shapes and types."""
    voxels = _volume(dice, label)
    kind = dice.randrange(5)
    if kind < 2:
        voxels = voxels.astype(dice.choice([np.float32, np.float64]))
        for _ in range(dice.randint(1, 20)):
            voxels[tuple(dice.randrange(n) for n in _SHAPE)] = dice.choice(_VALUES)
    elif kind == 2:
        voxels = np.full(_SHAPE, dice.choice([0, 1, 2, 7, 200]), np.uint8)
    elif kind == 3:
        shape = dice.choice([(12, 11), (12, 11, 10, 2), (12, 11, 10, 1, 3), (1, 1, 1), (11, 11, 10), (12, 11, 1)])
        voxels = np.random.default_rng(0).integers(0, 3, shape).astype(np.int16)
    else:
        colours = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        voxels = voxels.astype(np.complex64) if dice.random() < 0.5 else np.zeros(_SHAPE, colours)
    if voxels.dtype.names is None:
        file.write_bytes(_packed(bytes(nifti_bytes(dice, label, voxels)), file))
    else:
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(file)


def no_file(dice: random.Random, file: Path, label: bool) -> None:
    """A folder, a dangling link, a loop of links or a named pipe of that name."""
    kind = dice.randrange(5)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to(file.with_name("gone.nii.gz"))
    elif kind == 2:
        file.symlink_to(file.name)
    elif kind == 3:
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")


# ---- damage: dataset.json --------------------------------------------------------------------------------------------

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 1e308, float("nan"), float("inf"), 2**64, 10**400, "", " ", ".", "..", "/"),
    *("../../etc/passwd", "/dev/zero", "a" * 5000, "a\nb", "a\x1b[31mb", "\0", "\u202e", "²", "١", "e\u0301", "\ud800"),
    *("$import os", "$__import__('os').mkdir('evaluated')", "@run", "%train.yaml::epochs", "/data/$HOME/x", "ignore"),
    *([], {}, [[]], [1, "a"], {"": ""}, {"image": []}, {"1": "a", "2": "a"}, [1, 2], [None], {"a": [1, 2]}),
)
_FURTHER: dict[str, Any] = {
    "regions": {"whole": [1, 2], "part": [2]},
    "regions_class_order": [1, 2],
    "annotated": [1],
    "segments": [1, 2],
    "ignore_label": 3,
    "file_ending": ".nii.gz",
    "numTraining": 999,
    "original_labels": {"1": 7, "2": 5},
    "validation": [],
    "dataset": {},
}


def _document(names: list[str]) -> dict[str, Any]:
    entries = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    return {
        "name": "fuzz",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "organ", "2": "lesion"},
        "numTraining": len(entries),
        "training": [{**entry, "fold": number % 2} for number, entry in enumerate(entries)],
        "test": [],
    }


def _nodes(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(child, dict | list):
            yield from _nodes(child)


def json_structure(dice: random.Random, folder: Path) -> None:
    """Values of dataset.json get others, are left out, doubled, or become lists of objects of them."""
    file = folder / "dataset.json"
    content = json.loads(file.read_bytes())
    for _ in range(dice.choice([0, 0, 1, 2])):
        key = dice.choice(list(_FURTHER))
        content[key] = _FURTHER[key]
    for _ in range(dice.choice([1, 1, 2, 3])):
        node, key = dice.choice(list(_nodes(content)))
        deed = dice.randrange(8)
        if deed < 4:
            node[key] = dice.choice(_ODD)
        elif deed == 4:
            del node[key]
        elif deed == 5:
            node[key] = [node[key]] if dice.random() < 0.5 else {"a": node[key]}
        elif isinstance(node, list):
            node.append(node[key])
        elif isinstance(key, str):
            other = next((odd for odd in [dice.choice(_ODD)] if isinstance(odd, str)), "-7")
            node[other] = node.pop(key) if deed == 6 else node[key]
    file.write_text(json.dumps(content, ensure_ascii=dice.random() < 0.5), "utf-8", "surrogatepass")


def json_bytes(dice: random.Random, folder: Path) -> None:
    """dataset.json in other encodings, nested deeply, cut, with keys twice, or with bytes flipped."""
    file = folder / "dataset.json"
    text = file.read_text("utf-8")
    raw = bytearray(text.encode())
    for _ in range(dice.randint(1, 5)):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    depth = 10_000
    contents: list[bytes] = [
        bytes(raw),
        bytes(raw),
        bytes(raw),
        text.encode()[: dice.randrange(len(text))],
        text.encode("utf-8-sig"),
        text.encode(dice.choice(["utf-16", "utf-32", "utf-16-le"])),
        text.replace("\n", "\r\n").replace(" ", "\r\n").encode(),
        b"",
        b" " * 10_000_000 + text.encode(),
        b"[" * depth + b"]" * depth,
        text.replace('"fuzz"', "[" * depth + "]" * depth).encode(),
        text.replace("{", '{"name": "twice", ', 1).encode(),
        text.encode() + b"\0" * dice.randint(1, 9),
        text.encode() + text.encode(),
        text.replace('"fold": 1', '"fold": ' + "9" * 5000).encode(),
    ]
    file.write_bytes(dice.choice(contents))


# ---- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What is damaged, and the commands that get it."""

    damage: Callable[..., None]
    of_json: bool = False

    @property
    def name(self) -> str:
        return self.damage.__name__


GROUPS = [
    *map(Group, (header_field, header_bytes, file_bytes, lengths, extensions, voxel_values, no_file)),
    Group(json_structure, of_json=True),
    Group(json_bytes, of_json=True),
]
# command -> share of the cases; those that build a network take a hundred times as long as the first.
COMMANDS = {"check": 0.7, "prepare": 0.15, "infer": 0.08, "evaluate": 0.02, "train": 0.05}


def _begin(*_: Any, **__: Any) -> None:
    """In place of a training, once all checks of a start are passed."""
    raise SystemExit(0)


def data_set(dice: random.Random, folder: Path, suffix: str = ".nii.gz", num_cases: int = 2) -> list[str]:
    """A whole data set."""
    names = [f"case_{number}{suffix}" for number in range(num_cases)]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
        for name in names:
            file = folder / kind / name
            file.write_bytes(_packed(bytes(nifti_bytes(dice, kind == "labelsTr")), file))
    (folder / "dataset.json").write_text(json.dumps(_document(names)))
    return names


def _state(folder: Path) -> dict[str, str]:
    """Of each file below a folder its checksum, or its kind."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            kind = "file" if path.is_file() and not path.is_symlink() else "other"
            found[str(path)] = hashlib.md5(path.read_bytes()).hexdigest() if kind == "file" else kind
    return found


def _wrongly_read(file: Path) -> str | None:
    """How a file that was taken is read otherwise than by nibabel; None: it is not.

    nibabel gets it without header extensions: it refuses some whose length is wrong, which the voxels do not depend on.
    """
    content = bytearray((gzip.decompress if file.name.endswith(".gz") else bytes)(file.read_bytes()))
    header = _header_of(content)
    content[header.sizeof_hdr : header.sizeof_hdr + 4] = bytes(4)
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    reference = kind.from_bytes(bytes(content))
    values = np.asanyarray(reference.dataobj)
    ours = open_nifti(file)
    with np.errstate(all="ignore"):
        same = np.array_equal(ours.read().squeeze(), values.squeeze(), equal_nan=values.dtype.kind == "f")
    if not same:
        return f"{file.name}: other values than nibabel's"
    return None if np.allclose(ours.affine, reference.affine, rtol=1e-6) else f"{file.name}: another affine"


def _wrongly_segmented(images: Path, out: Path, printed: str) -> str | None:
    """The first volume without a label map on its grid, or what was passed over without a word; None: there is none."""
    for file in images.iterdir():
        if not file.is_file():
            if file.name not in printed:
                return f"{file.name}: passed over without a word"
            continue
        source, result = open_nifti(file), out / f"{file.name.partition('.')[0]}_seg.nii.gz"
        if not result.exists():
            return f"{file.name}: no label map"
        segmented = open_nifti(result)
        if segmented.shape != source.shape[:3] or not is_one_grid(source.shape[:3], segmented.affine, source.affine):
            return f"{file.name}: a label map on another grid"
    return None


def _arguments(command: str, place: Path, data: Path, run: Path) -> list[str]:
    out = str(place / "out")
    return {
        "check": ["check", str(data)],
        "prepare": ["prepare", str(data), "--out", out, "--workers", "1"],
        "infer": ["infer", "--run", str(run), "--input", str(data / "imagesTr"), "--output", out],
        "evaluate": ["evaluate", "--run", str(run), "--data", str(data), "--split", "all", "--output_dir", out],
        "train": ["train", "--data", str(data), "--run", out, "--epochs", "1", "--num_folds", "2"],
    }[command]


def _called(arguments: list[str]) -> tuple[Any, str]:
    """The exit code of a command, which is text where it prints that, and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            command_line(arguments)
        except SystemExit as end:
            return end.code, printed.getvalue()
    return 0, printed.getvalue()


def _refused_rightly(code: Any, printed: str, names: list[str]) -> str | None:
    """What is wrong with how a command refused; None: nothing."""
    said = code if isinstance(code, str) else printed
    lines = said.strip().splitlines()
    if not lines or "Traceback" in printed or "Traceback" in said:
        return f"no sentence: {(printed.strip().splitlines() or ['nothing'])[-1]}"
    if len(lines) > _MOST_LINES and isinstance(code, str):
        return f"{len(lines)} lines"
    if max(map(len, lines)) > _LINE:
        return f"a line of {max(map(len, lines))} characters"
    if re.search(r"[\0-\b\x0b\x0c\x0e-\x1f]", said):
        return f"control characters: {lines[-1]!r}"
    return None if any(name in said for name in names) else f"no file is named: {lines[-1]}"


def try_case(group: Group, command: str, seed: str, place: Path, run: Path) -> str | None:
    """Damage a data set and call a command.

    Returns:
        Why the case is lost; None: it survives.
    """
    dice = random.Random(seed)
    data = place / "data"
    names = data_set(dice, data, dice.choice([".nii", ".nii.gz"]))
    damaged = data / "dataset.json"
    if group.of_json:
        group.damage(dice, data)
    else:
        label = command != "infer" and dice.random() < 0.5
        damaged = data / ("labelsTr" if label else "imagesTr") / names[0]
        damaged.unlink()
        group.damage(dice, damaged, label)
    (place / "out").mkdir()
    if command in ("infer", "evaluate"):
        (place / "out" / "mine.txt").write_text("stays")
    before = _state(data)
    code, printed = _called(_arguments(command, place, data, run))
    if _state(data) != before:
        return "the input was changed"
    if left := [str(file) for file in place.rglob(".draft*")]:
        return f"left {left[0]}"
    if Path("evaluated").exists():
        return "text of the data was evaluated"
    if command in ("infer", "evaluate") and not (place / "out" / "mine.txt").exists():
        return "another file in the output is gone"
    if code not in (0, None):
        return _refused_rightly(code, printed, [damaged.name, data.name, names[0].partition(".")[0]])
    if "Traceback" in printed:
        return f"a traceback beside success: {printed.strip().splitlines()[-1]}"
    if command == "infer" and (wrong := _wrongly_segmented(data / "imagesTr", place / "out", printed)):
        return wrong
    return None if group.of_json or not damaged.is_file() else _wrongly_read(damaged)


# ---- processes -------------------------------------------------------------------------------------------------------


def _work(group: Group, jobs: list[tuple[str, str]], run: Path, results: Connection) -> None:
    """In a process of its own: cases, one by one."""
    from ignite.engine import Engine

    train = Engine.run
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY,) * 2)
    logging.captureWarnings(True)
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    for command, seed in jobs:
        results.send(("begins", command, seed))
        place = Path(tempfile.mkdtemp())
        os.chdir(place)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        Engine.run = _begin if command == "train" else train  # type: ignore[method-assign, assignment]
        try:
            lost = try_case(group, command, seed, place, run)
        except BaseException as error:
            lost = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if os.environ.get("FUZZ_TRACEBACKS"):
                lost += "\n" + traceback.format_exc()
        os.chdir("/")
        shutil.rmtree(place, ignore_errors=True)
        results.send(("ended", command, seed, lost))


def run_group(group: Group, jobs: list[tuple[str, str]], run: Path) -> Iterator[tuple[str, str, str | None]]:
    """Command, seed and what lost it of each case; a process that hangs or dies loses the case it was at."""
    context = multiprocessing.get_context("fork")
    left = list(jobs)
    while left:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(group, left, run, theirs), daemon=True)
        worker.start()
        theirs.close()
        lost = None
        while left:
            try:
                if not ours.poll(_SECONDS):
                    lost = f"hangs: no end after {_SECONDS} s"
                    break
                message = ours.recv()
            except EOFError:
                lost = "the process died"
                break
            if message[0] == "ended":
                left.pop(0)
                yield message[1:]
        worker.kill()
        worker.join()
        if left:
            command, seed = left.pop(0)
            yield command, seed, lost


def jobs_of(group: Group, cases: int, seed: int) -> list[tuple[str, str]]:
    """Commands and seeds of a group."""
    jobs = []
    for command, share in COMMANDS.items():
        if command == "infer" and group.of_json:
            continue  # it reads none
        count = max(round(cases * share), 1) if cases else 0
        jobs += [(command, f"{seed}/{group.name}/{command}/{number}") for number in range(count)]
    return jobs


def trained_run(folder: Path) -> Path:
    """A run of one epoch on a data set of this module."""
    data_set(random.Random(0), folder / "data", num_cases=4)
    options = {"--epochs": "1", "--num_folds": "2", "--channels": "[4, 8]", "--patch_size": "[8, 8, 8]"}
    words = [word for option in options.items() for word in option]
    code, printed = _called(["train", "--data", str(folder / "data"), "--run", str(folder / "run"), *words])
    if code:
        raise SystemExit(f"Expected a training, got: {code} {printed[-2000:]}")
    return folder / "run"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[group.name for group in GROUPS])
    args = parser.parse_args()
    groups = [group for group in GROUPS if args.only in (None, group.name)]
    lost: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = trained_run(Path(folder))
        print("| what is damaged | command | tried | survived | lost |\n|---|---|---|---|---|", flush=True)
        for group in groups:
            counts = {command: [0, 0] for command in COMMANDS}
            for command, seed, reason in run_group(group, jobs_of(group, args.cases // len(groups), args.seed), run):
                counts[command][0] += 1
                if reason is not None:
                    counts[command][1] += 1
                    lost.append((seed, reason))
                    print(f"{seed}: {reason}", file=sys.stderr, flush=True)
            for command, (tried, failed) in counts.items():
                if tried:
                    row = f"| {group.name} | {command} | {tried} | {tried - failed} | {failed} |"
                    print(row, flush=True)
    if lost:
        raise SystemExit("\n".join(f"lost {seed}: {reason}" for seed, reason in lost))


if __name__ == "__main__":
    main()
