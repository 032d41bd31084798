"""Ends a run whose tasks only die: Ray repeats a task without end when its process is killed.

Each kind of task calls `refuse_endless_deaths` first, so that the message can name its work.
"""

from collections.abc import Callable, Iterable

from pipeline.errors import TaskKilledError
from pipeline.execution import ray_private
from pipeline.planning import Range

# Not more than Ray repeats a task of its own accord; Ray Data sets no bound.
TASK_DEATHS = 3
# A read task can live for hours, and Ray repeats it for each lost node that held some of its rows.
READ_DEATHS = 20
MOST_NAMES = 3

# The name of a file, and a row of it.
Place = tuple[str, int]


def refuse_endless_deaths(
    verb: str, rows: Callable[[], Iterable[Place]], limit: int = TASK_DEATHS
) -> None:
    """Raise `TaskKilledError` in a task whose process was killed ``limit`` times.

    ``verb``: what the task does with the ``rows``, as in "writes". Of those, the first and the last
    of each file are enough.
    """
    if ray_private.task_attempt() >= limit:
        raise TaskKilledError(
            f"the process that {verb} {_text(rows())} was killed {limit} times, most likely "
            "because its node ran out of memory (the node's kernel log would say so). Give it more "
            "memory, or run less beside it; then the same command continues"
        )


def ends_of(ranges: Iterable[Range]) -> list[Place]:
    """The shards of ``ranges``, with the first and the last row of each range."""
    return [(r.part.shard.name, row) for r in ranges for row in (r.start, r.stop - 1)]


def _text(rows: Iterable[Place]) -> str:
    by_file: dict[str, list[int]] = {}
    for name, row in rows:
        by_file.setdefault(name, []).append(row)
    texts = [f"rows {min(n)} to {max(n)} of {name}" for name, n in by_file.items()]
    more = len(texts) - MOST_NAMES
    return ", ".join(texts[:MOST_NAMES]) + (f" and of {more} more files" if more > 0 else "")
