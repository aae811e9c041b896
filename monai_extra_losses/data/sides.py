"""Names of structures that a mirror image makes false: the left kidney's mirror image looks like the right kidney."""

import re
from collections.abc import Iterable, Sequence

AXES_OF_MIRRORS = ("left and right", "front and back", "top and bottom")
"""What is exchanged by a mirror image along R, A and S."""

# Per axis the words of one direction and of the other. On the first axis those of several languages, for many data sets
# have them.
_DIRECTIONS: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(one.split()), frozenset(other.split()))
    for one, other in (
        (
            "l lt lh left sin sinister sinistra sinistrum sinistro links linke linker linkes gauche izquierda "
            "izquierdo esquerda esquerdo lewy lewa lewe venstre vänster левый левая левое 左",
            "r rt rh right dex dext dexter dextra dextrum destra destro rechts rechte rechter rechtes droite droit "
            "derecha derecho direita direito prawy prawa prawe højre höger правый правая правое 右",
        ),
        ("anterior ant front ventral", "posterior post back dorsal"),
        ("superior sup upper cranial top", "inferior inf lower caudal bottom"),
    )
)
# Words that mean something else as well count only where both sides are there: "sin" may be a sinus.
_ONLY_IN_PAIRS = {"lt", "rt", "sin", "dex", "dext"}


def bound_to_direction(names: Iterable[str], axis: int = 0) -> tuple[str, ...]:
    """The names that a mirror image along an axis makes false.

    These are the names in pairs, which differ by opposite words alone (kidney_left and kidney_right, lh and rh, LungL
    and LungR, LUL and RUL), wherever the word stands. And along the first axis those of one side without the other: a
    mirrored image shows a kidney_left that is like the right one, and the right one is background.

    A word is what stands between spaces, punctuation and changes of case; letters in front of or behind another word
    are one where both names of the pair are there. A name with both words, "left_and_right_lung", is of no side.

    Args:
        names: of structures.
        axis: 0, 1 or 2, the axes R, A, S of the body.
    """
    names = tuple(names)
    words = {name: _words(name) for name in names}
    readings = {name: list(_readings(found, axis)) for name, found in words.items()}
    sides: dict[tuple[str, ...], set[int]] = {}
    for rest, side in (reading for of_name in readings.values() for reading in of_name):
        sides.setdefault(rest, set()).add(side)
    return tuple(
        name
        for name in names
        if any(len(sides[rest]) == 2 for rest, _ in readings[name]) or (axis == 0 and _is_of_one_side(words[name]))
    )


def mirror_remarks(names: Iterable[str], flip_axes: Sequence[int]) -> list[tuple[bool, str]]:
    """What is to be said of a training that mirrors its patches along some axes: whether it is wrong, and a sentence.

    Args:
        names: of the classes, or of the regions, that are trained.
        flip_axes: among 0, 1 and 2.
    """
    remarks = []
    names = tuple(names)
    for axis, exchanged in enumerate(AXES_OF_MIRRORS):
        bound = bound_to_direction(names, axis)
        if bound and axis in flip_axes:
            remarks.append(
                (
                    True,
                    f"flip_axes exchanges {exchanged} in half of the patches, and so the look of {listed(bound)}, "
                    f"whose labels stay: they will be taken for one another. Leave {axis} out of flip_axes.",
                )
            )
        elif bound and axis == 0:
            remarks.append(
                (
                    False,
                    f"Training does not mirror patches left to right, which would exchange the look of {listed(bound)} "
                    'and not the labels; --flip_axes "[0]" does so all the same.',
                )
            )
    return remarks


def automatic_flips(names: Iterable[str]) -> tuple[int, ...]:
    """Left and right, unless a name is of a side."""
    return () if bound_to_direction(names) else (0,)


def listed(names: Sequence[str], shown: int = 2) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return f"{', '.join(names[:shown])} and {more} more" if more > 0 else " and ".join(names)


def _words(name: str) -> tuple[str, ...]:
    """`Kidney_leftUpper2` as kidney, left, upper2."""
    split = re.sub(
        r"(?<=[^\W\d_])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[^\W\d_])|(?<=[左右])|(?=[左右])", " ", name
    )
    return tuple(word for word in re.split(r"[\W_]+", split.casefold()) if word)


def _readings(words: Sequence[str], axis: int) -> Iterable[tuple[tuple[str, ...], int]]:
    """Every way to read a word, or on the first axis an end of one, as a direction: the rest, and which it is."""
    for side, directions in enumerate(_DIRECTIONS[axis]):
        for place, word in enumerate(words):
            before, behind = tuple(words[:place]), tuple(words[place + 1 :])
            if word in directions:
                yield (*before, *behind), side
            for direction in directions if axis == 0 else ():
                if word != direction and word.startswith(direction):
                    yield (*before, f"-{word.removeprefix(direction)}", *behind), side
                if word != direction and word.endswith(direction):
                    yield (*before, f"{word.removesuffix(direction)}-", *behind), side


def _is_of_one_side(words: Sequence[str]) -> bool:
    left, right = (bool((side - _ONLY_IN_PAIRS).intersection(words)) for side in _DIRECTIONS[0])
    return left != right
