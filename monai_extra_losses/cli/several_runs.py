"""Commands that take several runs."""

from collections.abc import Iterator, Sequence

import click

_RUN = ("--run", "--bundle_root")


class CommandOfRuns(click.Command):
    """A command without arguments whose `--run` takes all words up to the next option, as a shell's pattern gives them.

    Its parameter `--run` has `multiple=True`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_with_an_option_each(args)))


def _with_an_option_each(words: Sequence[str]) -> Iterator[str]:
    """`--run A B` -> `--run A --run B`."""
    option: str | None = None  # that the next word, if it is none itself, belongs to
    has_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("-"):
            option, has_value = (name, bool(equals)) if name in _RUN else (None, False)
        elif option is not None:
            if has_value:
                yield option
            has_value = True
        yield word
