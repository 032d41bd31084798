"""Workers of one ledger in one process, with nothing but their claims."""

import threading
from collections.abc import Iterable
from typing import Any

from pipeline.output.claims import Claims
from pipeline.output.layout import fragment_name
from pipeline.output.ledger import Ledger
from pipeline.planning import Part, PartRef, Pass, Range, Shard, split_parts

RUN = Pass(0, 0, 1)
Rows = list[tuple[str, int]]


def parts_of(**rows: int) -> list[Part]:
    """The parts, of 50 rows, of shards with these names and numbers of rows."""
    shards = [
        Shard(f"{name}.parquet", f"/in/{name}.parquet", n, 1, "t") for name, n in rows.items()
    ]
    return split_parts(shards, 50)


class Fleet:
    """Workers of one ledger, and which of them are alive."""

    def __init__(self, ledger: Ledger, parts: list[Part]) -> None:
        self.ledger, self.parts = ledger, parts
        self.dead: dict[str, bool] = {}
        self.done: Rows = []
        self._lock = threading.Lock()

    def claims(
        self,
        name: str,
        at_once: int = 20,
        parts: list[Part] | None = None,
        run_pass: Pass = RUN,
    ) -> Claims:
        self.dead[name] = False
        member: Any = Member(self, name)
        return Claims(self.ledger, parts or self.parts, run_pass, member, at_once)

    def do(self, ranges: Iterable[Range] | None) -> None:
        """Make the rows of ``ranges`` durable."""
        for piece in ranges or ():
            name = fragment_name(PartRef.of(piece.part), piece.start, piece.stop, 0)
            self.ledger.store.put(name, b"")
            with self._lock:
                self.done += [(piece.part.shard.name, n) for n in range(piece.start, piece.stop)]

    @property
    def rows(self) -> Rows:
        """All rows of the parts."""
        return [(part.shard.name, n) for part in self.parts for n in range(part.start, part.stop)]


class Member:
    """What `Claims` needs of a `Worker`."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet, self.name = fleet, name

    def look(self) -> dict[str, bool]:
        return dict(self.fleet.dead)

    def remove(self, name: str) -> None:
        self.fleet.dead.pop(name, None)


def rows_of(ranges: Iterable[Range] | None) -> int:
    return sum(piece.rows for piece in ranges or ())
