"""What a data set or a start-up that cannot work raises; imports nothing, so that it costs nothing."""

from collections.abc import Iterable, Iterator


class DatasetError(ValueError):
    """A data set that cannot be used.

    Args:
        problems: one sentence, or one sentence per problem, each naming the file it is about.

    `str()` is the sentence itself, or for several a first line that counts them and then one line each.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"The data set has {len(self.problems)} problems:", *(f"  {line}" for line in self.problems)])


class CaseFailed(DatasetError):
    """A case that cannot be loaded any more, though the data set was checked at the start.

    Args:
        problem: one sentence that names the file.
    """

    def __init__(self, problem: str) -> None:
        if problem.startswith("Caught "):  # a loader process hands on a traceback, which ends in the sentence
            problem = problem.rpartition(f"{type(self).__name__}: ")[2].strip()
        super().__init__(problem)


class TrainingStopped(SystemExit):
    """A training that cannot go on: the interpreter prints the sentence to stderr and exits with 1."""


class StartUpRefused(SystemExit):
    """A run that must not start: the interpreter prints the sentence to stderr and exits with 1.

    A `SystemExit` because MONAI's config parser wraps every `Exception` raised while a component is built
    in "Failed to instantiate component ...", which buries the sentence.
    """


class FileRefused(StartUpRefused):
    """A file that a run must not use.

    Args:
        problem: what was expected and what is there, a sentence without its full stop.
        hint: what to do.
    """

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; {hint}.")


class CasesFailed(SystemExit):
    """A run that did what it could: the interpreter prints what failed to stderr and exits with 1."""


class WritingFailed(SystemExit):
    """A disk that takes no more: the interpreter prints the sentence to stderr and exits with 1."""


def history_of(error: BaseException) -> Iterator[BaseException]:
    """An error, then what it was raised from or, where it was not, what was handled when it came; and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
