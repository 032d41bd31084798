"""What the fault cases share: drivers as processes, and the output read without the pipeline.

A case writes prompts, starts drivers, does them harm and looks at what is durable meanwhile. In
the end every (row, sample) must be there once, in order, and with the text that it had at any
moment at which it was durable.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import write_shards

# No case depends on how fast anything is; this only ends a case that hangs.
LIMIT_SECONDS = 240
POLL_SECONDS = 0.2
MANY_TOKENS = 16_000  # of the 35,000 or so that most cases have
# As fast as the two engines that a case has otherwise; its start costs half as much.
ONE_ENGINE: Mapping[str, Any] = {"replicas": 1, "vllm": {"max_num_seqs": 32}}
PIPELINE = (sys.executable, "-m", "pipeline")

Key = tuple[int, int]


class Trace(NamedTuple):
    """What the cases ask of one sample of one row."""

    key: Key
    state: str
    text: str
    tokens: int
    carried: int
    error: str | None


def wait_until(condition: Callable[[], Any], what: str, told: Callable[[], str]) -> None:
    """Poll until ``condition`` holds; fail with ``what`` was waited for and what ``told`` says."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {LIMIT_SECONDS} s in vain for {what}\n{told()}")
        time.sleep(POLL_SECONDS)


class Driver:
    """A driver in a process group of its own, what it prints in a file."""

    def __init__(self, command: Iterable[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                list(command), env=environment, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def printed(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to its whole group, if it still runs."""
        if self.code is None:
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        wait_until(lambda: self.code is not None, "the driver's end", self.told)
        assert self.code is not None
        return self.code

    def reaches(self, condition: Callable[[], Any], what: str) -> bool:
        """Wait for ``condition``; False if the driver ended before it held."""
        wait_until(lambda: condition() or self.code is not None, what, self.told)
        return bool(condition())

    def must_reach(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for ``condition`` while the driver runs."""
        if not self.reaches(condition, what):
            pytest.fail(f"the driver ended before {what}, so the case shows nothing\n{self.told()}")

    def told(self) -> str:
        """Its exit code and the end of what it printed."""
        return f"driver {self.pid}, exit code {self.code}, printed:\n{self.printed[-6000:]}"


class Output:
    """The files of an output location, through ``fs``."""

    def __init__(self, url: str, fs: Any) -> None:
        self.url, self._fs = url, fs
        self._root = fs._strip_protocol(url).rstrip("/")

    def finished(self) -> list[str]:
        """The files of finished traces: the parts in order, then the blocks in no part yet."""
        names = self._files()
        parts = sorted(n for n in names if n.endswith(".parquet") and "/__qwq/" not in n)
        return [*parts, *(name for name in names if name.endswith(".rows"))]

    def leases(self) -> list[str]:
        """The lease files: another name is another driver's."""
        return [name for name in self._files() if "/__qwq/lease/" in name]

    def workers(self) -> set[str]:
        """The files of the workers that share the output."""
        return {name for name in self._files() if "/__qwq/workers/" in name}

    def traces(self) -> list[Trace]:
        """The traces of all finished parts, in order."""
        parts = [name for name in self.finished() if name.endswith(".parquet")]
        return [trace for traces in self._read(parts) for trace in traces]

    def durable(self) -> dict[Key, set[str]]:
        """The texts of all that is durable at this moment.

        Two fragments may hold the same row: an engine whose driver was killed may write for some
        moments more, while the next driver does the same row again.
        """
        while True:
            names = self.finished()
            tables = self._read(names)
            if len(tables) == len(names):  # else fragments became a part just now
                break
        texts: dict[Key, set[str]] = defaultdict(set)
        for trace in (trace for traces in tables for trace in traces):
            texts[trace.key].add(trace.text)
        return texts

    def _files(self) -> list[str]:
        self._fs.invalidate_cache()
        found: list[str] = self._fs.find(self._root)
        return found

    def _read(self, names: list[str]) -> list[list[Trace]]:
        """The traces of each file; those that are gone are left out."""
        found: dict[str, bytes] = self._fs.cat(names, on_error="omit") if names else {}
        return [_traces(found[name]) for name in names if name in found]


def _traces(parquet: bytes) -> list[Trace]:
    return [
        Trace(
            (row["id"], row["sample"]),
            row["state"],
            f"{row['think']}\n\n{row['answer']}",
            row["think_tokens"] + row["answer_tokens"] + row["wasted_tokens"],
            row["carried_tokens"],
            row["error"],
        )
        for row in pq.read_table(BytesIO(parquet)).to_pylist()
    ]


@dataclass(frozen=True)
class Outcome:
    """What a case came to: one row of the table. None: not seen, where no engine of ours generates."""

    fault: str
    traces: int
    lost: int
    doubled: int
    changed: int
    generated_twice: int | None
    tokens_twice: int | None
    carried_tokens: int


@dataclass
class Case:
    """One run of the simulated engine, whatever befalls it."""

    fault: str
    folder: Path
    output: Output
    sizes: list[int]
    samples: int
    environment: Mapping[str, str]
    sections: Mapping[str, Mapping[str, Any]]
    drivers: list[Driver] = field(default_factory=list)
    report: Callable[[Outcome], None] = lambda _: None
    _seen: list[dict[Key, set[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = write_shards(self.folder / "in", self.sizes)
        self.config = self.folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(self._settings()))

    def _settings(self) -> dict[str, Any]:
        simulated = {
            "tokens_median": 200, "tokens_sigma": 0.5, "seconds_per_token": 0.01,
            "varies": True, "log": str(self.folder / "engines.log"),
        }  # fmt: skip
        engine = dict(self.sections.get("engine", {}))
        simulated |= engine.pop("simulated", {})
        return {
            "input": {"path": str(self.folder / "in")},
            "output": {
                "path": self.output.url, "rows_per_part": 32, "checkpoint_seconds": 2,
                **self.sections.get("output", {}),
            },
            "model": {"path": "qwq-nano"},
            "sampling": {"n": self.samples, **self.sections.get("sampling", {})},
            "thinking": dict(self.sections.get("thinking", {})),
            "answer": dict(self.sections.get("answer", {})),
            "engine": {
                "kind": "simulated", "device": "cpu", "replicas": 2, "block_rows": 4,
                "vllm": {"max_num_seqs": 16}, **engine, "simulated": simulated,
            },
        }  # fmt: skip

    @property
    def traces(self) -> int:
        """How many traces there are to be."""
        return self.rows * self.samples

    def start(
        self,
        command: Iterable[str] = PIPELINE,
        settings: Iterable[str] = (),
        retry: str | None = None,
        shared: bool = False,
    ) -> Driver:
        """Start a driver on this run, with other ``settings`` (key=value) if there are any.

        ``retry``: states to retry instead. ``shared``: as one of several workers.
        """
        log = self.folder / f"driver-{len(self.drivers)}.log"
        arguments = [str(self.config), *(word for s in settings for word in ("--set", s))]
        run = ["work" if shared else "run", *arguments]
        if retry is not None:
            run = ["retry", *arguments, "--state", retry]
        driver = Driver([*command, *run], self.environment, log)
        self.drivers.append(driver)
        return driver

    def finish(self, driver: Driver | None = None) -> None:
        """Wait until ``driver``, or a new one, has ended the run with exit code 0."""
        driver = driver or self.start()
        assert driver.wait() == 0, driver.told()

    def remember(self) -> int:
        """Look at what is durable now, which must stay as it is; how many traces that are."""
        self._seen.append(self.output.durable())
        return len(self._seen[-1])

    def forget(self) -> None:
        """Nothing that was seen has changed so far; from now on it may, as a retry follows."""
        outcome = self._outcome(self.output.traces())
        assert (outcome.lost, outcome.doubled, outcome.changed) == (0, 0, 0), outcome
        self._seen.clear()

    def progress(self) -> Callable[[], bool]:
        """A condition: since now more traces have become durable, or many tokens were generated.

        (The engines are as fast on a busy machine, while the first that writes may start late.)
        """
        before, enough = set(self.output.finished()), self.generated().total() + MANY_TOKENS
        return lambda: (
            not before.issuperset(self.output.finished()) or self.generated().total() > enough
        )

    def generated(self) -> Counter[Key]:
        """Tokens that the engines generated for each trace, all runs together; no probes."""
        log, first = self.folder / "engines.log", [0, *accumulate(self.sizes)]
        tokens: Counter[Key] = Counter()
        for line in log.read_text().splitlines() if log.exists() else []:
            entry = json.loads(line)
            if entry["id"].endswith(":probe"):
                continue
            shard, row, sample = re.findall(r"\d+", entry["id"])[-3:]
            tokens[first[int(shard)] + int(row), int(sample)] += entry["tokens"]
        return tokens

    def check(self, failed: Iterable[int] = (), states: Collection[str] = ("finished",)) -> Outcome:
        """The output is whole, in order and as it was seen.

        ``failed``: the rows that had to; ``states``: those that the others may have.
        """
        traces = self.output.traces()
        outcome = self._outcome(traces)
        self.report(outcome)
        assert (outcome.lost, outcome.doubled, outcome.changed) == (0, 0, 0), outcome
        assert [trace.key for trace in traces] == self._expected(), "the rows are out of order"
        to_fail = set(failed)
        wrong = [
            t for t in traces if t.state not in (("failed",) if t.key[0] in to_fail else states)
        ]
        assert not wrong, f"{len(wrong)} traces are in the wrong state, the first: {wrong[0]}"
        return outcome

    def _expected(self) -> list[Key]:
        return [(row, sample) for row in range(self.rows) for sample in range(self.samples)]

    def _outcome(self, traces: list[Trace]) -> Outcome:
        count = Counter(trace.key for trace in traces)
        texts = {trace.key: trace.text for trace in traces}
        held = {trace.key: trace.tokens for trace in traces}
        # A trace that an engine held when it was killed may lack its last tokens in the log.
        generated = self.generated()
        twice = [n - held.get(key, 0) for key, n in generated.items() if n > held.get(key, 0)]
        seen = ((key, old) for moment in self._seen for key, old in moment.items())
        return Outcome(
            self.fault,
            len(traces),
            len(set(self._expected()) - count.keys()),
            sum(count.values()) - len(count),
            len({key for key, old in seen if key in texts and texts[key] not in old}),
            len(twice) if generated else None,
            sum(twice) if generated else None,
            sum(trace.carried for trace in traces),
        )
