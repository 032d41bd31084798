"""The processes of engine actors: which rows each holds, and whether it still works; no I/O.

A process can end without a word, when it is killed or its machine is lost, or live on and do
nothing. Ray starts it again under another engine name, and in the same actor.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

logger = logging.getLogger(__name__)
RowKey = tuple[str, int]  # part name, row number


class ProcessAddress(NamedTuple):
    """Where an engine's process is. ``started``: when, as its machine counts it."""

    engine: str
    actor: str
    node: str
    host: str
    pid: int
    started: str


@dataclass
class EngineProcess:
    """One process, and the rows that it would take along.

    ``held``: all rows of its unfinished blocks. ``rendering``: those whose prompts it makes now;
    ``suspects``: those that have the engine to themselves, for they may kill it.
    """

    address: ProcessAddress
    is_ready: bool = False
    is_killed: bool = False
    held: set[RowKey] = field(default_factory=set)
    rendering: Sequence[RowKey] = ()
    suspects: Sequence[RowKey] = ()
    # Seconds without a sign of work: in all, and those in which another engine made tokens.
    idle_seconds: float = 0.0
    idle_seconds_beside_others: float = 0.0


class HungLimits(NamedTuple):
    """After how many seconds without a sign of work an engine is hung.

    ``look``: the time between two looks. ``beside_others``: if others make tokens meanwhile;
    ``alone``: if none does.
    """

    look: float
    beside_others: float
    alone: float


class FailedStarts(NamedTuple):
    """Engines that could not start: since any engine generated a token, and since one was ready."""

    idle: int
    in_a_row: int

    @property
    def doublings(self) -> int:
        """How often the wait before the next try has doubled; less if no engine is at work."""
        return (self.in_a_row if self.idle == 1 else self.idle) - 1


class EngineProcesses:
    """The processes that have started and not ended, as far as is known.

    ``node_lives``: tells by its id whether a node is still there.
    """

    def __init__(self, node_lives: Callable[[str], bool] = lambda _: True) -> None:
        self._processes: dict[str, EngineProcess] = {}  # by engine
        self._node_lives = node_lives
        self._nodes, self._ending_nodes = set[str](), set[str]()
        self._seconds, self._counted = 0.0, time.monotonic()
        self._alive, self._working = set[str](), set[str]()  # since the last look

    def __getitem__(self, engine: str) -> EngineProcess:
        """The process of ``engine``; one that is not known is made up and changes nothing."""
        unknown = ProcessAddress(engine, "", "", "", 0, "")
        return self._processes.get(engine) or EngineProcess(unknown)

    def start(self, address: ProcessAddress) -> EngineProcess | None:
        """Add a process; returns the one before it in the same actor, if that never ended."""
        self.count_seconds()
        before = [p for p in self._processes.values() if p.address.actor == address.actor]
        for process in before:
            self.end(process.address.engine)
        self._processes[address.engine] = EngineProcess(address)
        return before[0] if before else None

    def end(self, engine: str) -> None:
        """Forget a process that has ended in an orderly way."""
        self.count_seconds()
        self._processes.pop(engine, None)

    def note_nodes(self, living: Collection[str], ending: Collection[str]) -> None:
        """The nodes that are there, and those of them that are about to end."""
        self.count_seconds()
        self._nodes, self._ending_nodes = set(living), set(ending)

    def node_ends(self, engine: str) -> bool:
        """Whether the node of ``engine`` is about to end."""
        return self[engine].address.node in self._ending_nodes

    def is_lost(self, process: EngineProcess) -> bool:
        """Whether the node of a process has gone; True if that is unknown, to blame no row."""
        try:
            return not self._node_lives(process.address.node)
        except Exception:  # Ray's own server is busy
            logger.warning("the nodes are unknown", exc_info=True)
            return True

    def count_seconds(self) -> float:
        """For how long all processes together have had their GPUs; those of lost nodes are gone."""
        now = time.monotonic()
        nodes = [process.address.node for process in self._processes.values()]
        here = sum(node in self._nodes for node in nodes) if self._nodes else len(nodes)
        self._seconds += (now - self._counted) * here
        self._counted = now
        return self._seconds

    def release(self, engine: str, rows: Iterable[RowKey]) -> None:
        """Rows of ``engine`` that are done, or given up."""
        self[engine].held.difference_update(rows)

    def report(self, engine: str, makes_progress: bool, makes_tokens: bool) -> None:
        """Note a sign of life; without rows that an engine could work on, any report is one."""
        if makes_progress or not self[engine].held:
            self._alive.add(engine)
        if makes_tokens:
            self._working.add(engine)

    def look(self, limits: HungLimits) -> list[EngineProcess]:
        """The engines that have hung; whoever kills one says so, or it is named again later.

        Time counts by looks: while this process sleeps, nobody becomes older. If no engine makes
        tokens, the reason is more likely one that they share, so one at a time is given up.
        """
        for process in self._watched():
            if process.address.engine in self._alive:
                process.idle_seconds = process.idle_seconds_beside_others = 0.0
            else:
                process.idle_seconds += limits.look
                process.idle_seconds_beside_others += limits.look * bool(self._working)
        self._alive, self._working = set(), set()
        hung = [p for p in self._watched() if p.idle_seconds_beside_others >= limits.beside_others]
        if not hung:
            hung = [p for p in self._watched() if p.idle_seconds >= limits.alone][:1]
            for process in self._watched() if hung else ():
                process.idle_seconds = 0.0
        for process in hung:
            process.idle_seconds = process.idle_seconds_beside_others = 0.0
        return hung

    def _watched(self) -> Iterator[EngineProcess]:
        return (p for p in self._processes.values() if p.is_ready and not p.is_killed)
