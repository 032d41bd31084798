"""The Ray Data source: the rows of a plan, with one read task for each bundle of ranges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.errors import QwqBatchError
from pipeline.execution.prepare import PassContext
from pipeline.execution.task_deaths import READ_DEATHS, ends_of, refuse_endless_deaths
from pipeline.input.longest_first import LONGEST_FIRST_WAVES, Lengths, longest_first
from pipeline.input.rows import ROWS_A_READ_TASK, read_bundle
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.planning import Range, bundles
from pipeline.schema import with_origin


class RowSource(Protocol):
    """A `Datasource` that says how many read tasks it has; `read_datasource` must make as many."""

    read_tasks: int


class Feed(Protocol):
    """Where the rows of one execution come from.

    ``todo``: its rows, or the first of them. ``rows``: how many it will have, at most.
    ``resources``: that a read task needs, as Ray's options.
    """

    todo: Sequence[Range]
    rows: int
    resources: Mapping[str, Any]

    def source(self, context: PassContext, lengths: Lengths | None, at_once: int) -> Any:
        """What Ray Data reads, a `RowSource`; ``at_once``: how many rows all engines run."""
        ...

    def feeding(
        self,
        coordinator: CoordinatorClient,
        in_flight: int,
        end: Callable[[QwqBatchError], None],
        /,
    ) -> AbstractContextManager[None]:
        """What has to go on while the engines work.

        ``in_flight``: how many rows the engines must have. ``end``: gets the error if it fails.
        """
        ...


class PlannedRows:
    """All rows of a plan, known from the start."""

    resources: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, todo: Sequence[Range]) -> None:
        self.todo: Sequence[Range] = tuple(todo)
        self.rows = sum(piece.rows for piece in todo)

    def source(self, context: PassContext, lengths: Lengths | None, at_once: int) -> "PromptSource":
        """See `Feed`; the last rows go longest first."""
        return PromptSource(context, tuple(self.todo), lengths, LONGEST_FIRST_WAVES * at_once)

    def feeding(self, *_: object) -> AbstractContextManager[None]:
        """Nothing has to go on."""
        return nullcontext()


class PromptSource(Datasource):
    """The rows of ``todo`` in order, each with its part, row number and requested samples.

    With ``lengths``, the ``last`` rows go longest first.
    """

    def __init__(
        self,
        context: PassContext,
        todo: tuple[Range, ...],
        lengths: Lengths | None = None,
        last: int = 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        last = 0 if lengths is None else min(last, ROWS_A_READ_TASK)
        self._bundles = list(bundles(todo, ROWS_A_READ_TASK, last))
        self._context, self._lengths = context, lengths

    @property
    def read_tasks(self) -> int:
        """How many read tasks there are; `read_datasource` must make as many."""
        return len(self._bundles)

    def get_name(self) -> str:
        """The name in Ray Data's own logs."""
        return "Prompts"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each bundle of ranges."""
        context, schema = self._context, with_origin(self._context.prompts)
        read = partial(_read, context.config.input.path, context.run_pass.samples, schema)
        return [
            ReadTask(
                partial(read, bundle, self._lengths if bundle is self._bundles[-1] else None),
                BlockMetadata(
                    num_rows=sum(piece.rows for piece in bundle),
                    size_bytes=None,
                    input_files=None,
                    exec_stats=None,
                ),
                schema=schema,
            )
            for bundle in self._bundles
        ]


def _read(
    input_url: str,
    samples: tuple[int, ...],
    schema: pa.Schema,
    bundle: Sequence[Range],
    lengths: Lengths | None,
) -> Iterator[pa.Table]:
    refuse_endless_deaths("reads", lambda: ends_of(bundle), READ_DEATHS)
    tables = read_bundle(input_url, bundle, samples, schema)
    return tables if lengths is None else longest_first(tables, lengths)
