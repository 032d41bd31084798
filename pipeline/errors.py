"""Every error of the project, with what the user can do about it; no I/O.

`QwqBatchError` ends a run with one message. `RowError` ends one row: it becomes the row's
``error`` and the other rows go on. `EngineDeadError` is neither: the actor ends, Ray starts
another, and its rows are done again. What may be retried is decided by these types alone.
"""


class QwqBatchError(Exception):
    """Base of the errors that end a run; ``message`` says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # Ray Data adds words of its own to what str() gives


class ConfigError(QwqBatchError):
    """The configuration is wrong: a key, a value, or two that don't go together."""


class InputError(QwqBatchError):
    """The prompts can't be read as configured: no such path, no such column, clashing types."""


class OutputError(QwqBatchError):
    """The output location can't take this run: something else lives there."""


class StorageError(QwqBatchError):
    """The storage refuses: credentials, permission, bucket, endpoint."""


class ModelError(QwqBatchError):
    """The model, its tokenizer or its chat template can't be loaded, or its engine won't start."""


class EngineError(QwqBatchError):
    """Engines or Ray failed for good: after all retries, or in a way that retries can't mend."""


class LeaseHeldError(QwqBatchError):
    """Another driver works on this output, or has taken it over."""


class StoppedError(QwqBatchError):
    """The run was told to end by a signal; what was running is saved where there was time."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class IncompleteRunError(QwqBatchError):
    """The run ended before every row was done; what is done is kept."""


class LimitReachedError(IncompleteRunError):
    """The run has come to a limit of its own; what was running is saved."""


class EngineDeadError(Exception):
    """An engine stopped working. Its unfinished rows are not bad; another engine redoes them."""


class RowError(Exception):
    """Base of what can be wrong with one row; ``kind`` is written before the message."""

    kind = "row_error"

    def __str__(self) -> str:
        return f"{self.kind}: {super().__str__()}"


class InvalidPromptError(RowError):
    """The prompt or the messages are null, empty or of the wrong type."""

    kind = "invalid_prompt"


class TemplateError(RowError):
    """The model's chat template raised on these messages."""

    kind = "template_error"


class PromptTooLongError(RowError):
    """The prompt leaves no room in the context for a single output token."""

    kind = "prompt_too_long"


class RequestRejectedError(RowError):
    """The engine refused this one request."""

    kind = "request_rejected"


class EngineKilledError(RowError):
    """The engine died each time this row ran."""

    kind = "engine_killed"
