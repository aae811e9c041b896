"""How many functions of the package one call of a loss runs through, forward and backward.

    python benchmarks/count_calls.py
    python benchmarks/count_calls.py --loss FusedDiceCELoss --list

Of 3 classes, labels and one slab, after a first call that warms up. What a small patch costs beside its arithmetic is
these calls.
"""

import argparse
import collections
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import monai_extra_losses
from monai_extra_losses import losses

PACKAGE = str(Path(monai_extra_losses.__file__).parent)
EXPRESSIONS = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")  # which later versions of Python run in place


def calls_in(run: Callable[[], Any]) -> collections.Counter[str]:
    """Function of the package -> how often `run` calls it; those of other libraries are not counted."""
    calls: collections.Counter[str] = collections.Counter()

    def note(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in EXPRESSIONS:
            calls[f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_qualname}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return calls


def count_calls(loss: torch.nn.Module) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """The calls of the forward and of the backward."""
    logits = torch.randn(1, 3, 4, 4, 8, requires_grad=True)  # 128 voxels: one slab
    labels = torch.randint(0, 3, (1, 1, 4, 4, 8))
    loss(logits, labels).backward()
    values: list[torch.Tensor] = []
    with torch.autograd.set_multithreading_enabled(False):  # so that the backward runs where it is watched
        forward = calls_in(lambda: values.append(loss(logits, labels)))
        backward = calls_in(values[0].backward)
    return forward, backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="FusedDiceLoss", help="class of the package; default %(default)s")
    parser.add_argument("--list", action="store_true", help="print each function with its number")
    options = parser.parse_args()
    for name, calls in zip(("forward", "backward"), count_calls(make(options.loss)), strict=True):
        print(f"{options.loss} {name}: {calls.total()} calls of {len(calls)} functions")
        if options.list:
            for function, number in calls.most_common():
                print(f"  {number:3d} {function}")


def make(name: str) -> torch.nn.Module:
    """The loss of a softmax over labels."""
    softmax = "use_softmax" if name == "FusedFocalLoss" else "softmax"
    return getattr(losses, name)(to_onehot_y=True, **{softmax: True})


if __name__ == "__main__":
    main()
