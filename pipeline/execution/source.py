"""The Ray Data source: the rows of a plan, with one read task for each bundle of ranges."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
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


class RowSource(Datasource):
    """Rows, each with its part, row number and requested samples.

    ``read_tasks``: how many read tasks it has; `read_datasource` must make as many.
    """

    read_tasks: int

    def get_name(self) -> str:
        """The name in Ray Data's own logs."""
        return "Prompts"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None


class Feed(Protocol):
    """Where the rows of one execution come from.

    ``todo``: its rows, or the first of them. ``rows``: how many it will have, at most.
    ``read_cpus``: what a read task holds; None as Ray Data has it.
    """

    todo: Sequence[Range]
    rows: int
    read_cpus: float | None

    def source(self, context: PassContext, lengths: Lengths | None, at_once: int) -> RowSource:
        """What Ray Data reads; ``at_once``: how many rows all engines run."""
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

    read_cpus: float | None = None

    def __init__(self, todo: Sequence[Range]) -> None:
        self.todo: Sequence[Range] = tuple(todo)
        self.rows = sum(piece.rows for piece in todo)

    def source(self, context: PassContext, lengths: Lengths | None, at_once: int) -> "PromptSource":
        """See `Feed`; the last rows go longest first."""
        return PromptSource(context, tuple(self.todo), lengths, LONGEST_FIRST_WAVES * at_once)

    def feeding(self, *_: object) -> AbstractContextManager[None]:
        """Nothing has to go on."""
        return nullcontext()


class PromptSource(RowSource):
    """The rows of ``todo`` in order.

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
        self.read_tasks = len(self._bundles)
        self._context, self._lengths = context, lengths

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
