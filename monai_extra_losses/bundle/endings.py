"""How an engine ends where the storage takes no more, or another process is gone."""

from pathlib import Path

from ignite.engine import Engine, Events

from monai_extra_losses.bundle.processes import lost_process_sentence
from monai_extra_losses.data.errors import TrainingStopped, WritingFailed
from monai_extra_losses.data.storage import storage_sentence


def end_in_a_sentence(engine: Engine, place: Path) -> None:
    """Let `engine` say what the storage refused, or that another process is gone, and not with a traceback; nor what it
    raises anyhow, a second time.

    Args:
        engine: any.
        place: what is written, where the error does not name a file.
    """

    def raise_as_sentence(_: Engine, error: BaseException) -> None:
        sentence = storage_sentence(error, place) if isinstance(error, Exception) else None
        if sentence is not None:
            raise WritingFailed(sentence) from None
        lost = lost_process_sentence(error) if isinstance(error, Exception) else None
        if lost is not None:
            raise TrainingStopped(lost) from None
        raise error

    engine.add_event_handler(Events.EXCEPTION_RAISED, raise_as_sentence)
    engine.logger.addFilter(lambda record: "is terminating due to exception" not in record.msg)
