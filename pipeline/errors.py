"""The exceptions of the project; no I/O.

`QwqBatchError` ends a run with one message, which says what to do. `RowError` fails one row: its
message becomes the row's ``error``, and the other rows continue. After `EngineDeadError` Ray starts
another actor, which redoes the unfinished rows. These types alone decide what is retried.
"""


class QwqBatchError(Exception):
    """Base of the errors that end a run; ``message`` says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # without the text that Ray Data adds to str()


class ConfigError(QwqBatchError):
    """The configuration has a wrong key or value, or two values that exclude each other."""


class InputError(QwqBatchError):
    """The input can't be read as configured: a missing path or column, or clashing types."""


class OutputError(QwqBatchError):
    """The output location can't take this run: it holds another run or other files."""


class PassOpenedError(OutputError):
    """Another driver has opened the next retry or top-up at the same time."""


class StorageError(QwqBatchError):
    """The storage refused a request: credentials, permissions, bucket or endpoint."""


class ModelError(QwqBatchError):
    """The model, its tokenizer or its chat template can't be loaded, or the engine can't start."""


class EngineError(QwqBatchError):
    """Engines or Ray failed permanently: after all retries, or in a way no retry can fix."""


class TaskKilledError(EngineError):
    """The process of a task was killed each time that Ray started it."""


class LeaseHeldError(QwqBatchError):
    """Another driver holds the lease on this output, or has taken it over."""


class ExpelledError(LeaseHeldError):
    """Other workers have not heard from this one, and have taken its rows over."""


class HandedOverError(QwqBatchError):
    """A worker gives its last rows to faster ones; it takes them back if these leave them."""


class StoppedError(QwqBatchError):
    """A signal ended the run; engines saved their running traces if time allowed.

    ``signal``: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class IncompleteRunError(QwqBatchError):
    """The run ended before every row was done; finished rows are kept."""


class LimitReachedError(IncompleteRunError):
    """The run reached a limit of its configuration; engines saved their running traces."""


class EngineDeadError(Exception):
    """An engine stopped working; another engine redoes its unfinished rows."""


class FileChangedError(Exception):
    """Another process has replaced a file since this one read it; nothing was written."""


class RowError(Exception):
    """Base of the errors of one row; ``kind`` precedes the message in the ``error`` column."""

    kind = "row_error"

    def __str__(self) -> str:
        return f"{self.kind}: {super().__str__()}"


class InvalidPromptError(RowError):
    """The prompt or its messages are null, empty or of the wrong type."""

    kind = "invalid_prompt"


class TemplateError(RowError):
    """The model's chat template raised an error on these messages."""

    kind = "template_error"


class PromptTooLongError(RowError):
    """The prompt fills the context, so that no output token fits."""

    kind = "prompt_too_long"


class RequestRejectedError(RowError):
    """The engine refused the request of this row."""

    kind = "request_rejected"


class UnreadableRowError(RowError):
    """The input file can't be read at this row."""

    kind = "unreadable"


class EngineKilledError(RowError):
    """The engine died every time this row ran."""

    kind = "engine_killed"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if the message is empty."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
