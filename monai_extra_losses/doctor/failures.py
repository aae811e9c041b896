"""What failed in a doctor's examination, and what helps."""

import contextlib
import re
import warnings
from collections.abc import Iterator

from monai_extra_losses.bundle.error_text import first_cause, said_of
from monai_extra_losses.bundle.foreign_warnings import POINTLESS_WARNINGS
from monai_extra_losses.bundle.loss_facts import parts_of, takes_labels
from monai_extra_losses.doctor.built import BuiltTraining


class ExaminationStopped(Exception):
    """A problem after which nothing more can be found out."""


_REMEDIES = (
    (r"out of memory|can't allocate memory|MemoryError", "lower --batch_size or --patch_size"),
    (
        r"more than 1 spatial element",
        "the patch is too small for so many levels: a larger --patch_size, or fewer --channels",
    ),
    (r"Sizes of tensors must match", "the network cannot halve this patch as often: multiples of 16 as --patch_size"),
    (
        r"does not require grad",
        "something in the loss cuts the gradient off, such as argmax, a comparison, detach, item or numpy",
    ),
    (
        r"modified by an inplace operation",
        "something changes a tensor in place that the gradient needs: clone it first",
    ),
    (r"not implemented for '?(Half|BFloat16)", "it does not compute in half precision: --amp False"),
)


@contextlib.contextmanager
def stage(doing: str, training: BuiltTraining | None = None) -> Iterator[None]:
    """Ends the examination with one sentence where something fails: at which stage, what, and the likely remedy."""
    try:
        yield
    except ExaminationStopped:
        raise
    except Exception as error:
        raise ExaminationStopped(f"{doing} failed: {said_of(error)}; {_remedy(error, training)}.") from error


def _remedy(error: BaseException, training: BuiltTraining | None) -> str:
    cause = first_cause(error)
    text = f"{type(cause).__name__}: {cause}"
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text):
            return remedy
    if training is not None:
        number = training.record.num_classes
        if not all(map(takes_labels, (part for _, part in parts_of(training.loss)))):
            return "the target is a map of labels: --loss::to_onehot_y True"
        if "weight" in text:
            return (
                f"give --loss::weight one number for each of the {number} classes ({', '.join(training.names)}), and "
                "without a background in the result one less"
            )
    return "look at the options of that part"


@contextlib.contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """The texts of the warnings that are raised meanwhile."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield texts
    said = [str(warning.message).strip() for warning in caught if warning.category is UserWarning]
    texts += [text for text in dict.fromkeys(said) if not any(part in text for part in POINTLESS_WARNINGS)]
