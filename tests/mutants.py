"""Change the modules that keep data in one place at a time: do the unit tests notice?

    python -m tests.mutants                                    # all of `MODULES`
    python -m tests.mutants pipeline/output/lease.py           # some
    python -m tests.mutants --sample 200 --seed 7              # some mutants of each

The tests are collected and run once, in this process; that tells which lines each of them reaches.
For each mutant a fork of the process gets the changed code and runs the tests that reach its line,
the fastest first, until one fails. Printed are the mutants that survived, and the score: the share
that a test kills, or that end no more. Only code in functions is changed, and no message or log
line. (mutmut leaves out functions with decorators and deletes no statement; cosmic-ray starts
pytest for each mutant.)
"""

import argparse
import gc
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from types import FrameType, FunctionType
from typing import Any

import pytest

from tests.mutations import ROOT, Mutant, mutants_of

# The modules, and the tests that are meant to notice.
MODULES = {
    "pipeline/planning.py": ("test_planning.py", "input", "execution/test_many_rows.py"),
    "pipeline/storage.py": ("test_storage.py", "test_storage_s3.py"),
    "pipeline/object_stores.py": ("test_storage.py", "test_storage_s3.py", "test_object_stores.py"),
    "pipeline/local_disk.py": ("test_storage.py", "output"),
    "pipeline/output/layout.py": ("output",),
    "pipeline/output/parts.py": ("output", "execution/test_duplicates.py"),
    "pipeline/output/merge.py": ("output", "execution/test_duplicates.py"),
    "pipeline/output/ledger.py": ("output", "execution/test_duplicates.py"),
    "pipeline/output/passes.py": ("output",),
    "pipeline/output/lease.py": ("output/test_lease.py",),
    "pipeline/output/checkpoints.py": ("output/test_checkpoints.py",),
    "pipeline/monitor/limits.py": ("monitor/test_limits.py",),
    "jobs/accept.py": ("jobs/test_accept.py", "jobs/test_synthesize.py", "jobs/test_selection.py"),
    "jobs/near_duplicates.py": ("jobs/test_accept.py", "jobs/test_synthesize.py"),
    "jobs/samples.py": ("jobs/test_accept.py", "jobs/test_selection.py"),
    "jobs/chats.py": ("jobs/test_chats.py", "jobs/test_synthesize.py", "jobs/test_selection.py"),
    "jobs/export.py": ("jobs/test_chats.py", "jobs/test_selection.py"),
}
BAR = 0.9
# Changes that no test can notice: (module, code before, after): why.
_MINHASH = "minhash = MinHash(PERMUTATIONS, {})"
_KEY = "key = hashlib.blake2b(' '.join(prompt.split()).encode(){}).digest()"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    **{
        (
            "jobs/near_duplicates.py",
            _MINHASH.format("seed=1, hashfunc=zlib.crc32"),
            _MINHASH.format(other),
        ): ("signatures are only compared with each other")
        for other in ("hashfunc=zlib.crc32", "seed=1", "seed=2, hashfunc=zlib.crc32")
    },
    **{
        (
            "jobs/near_duplicates.py",
            _KEY.format(", digest_size=16"),
            _KEY.format(other),
        ): "a longer key"
        for other in ("", ", digest_size=17")
    },
    (
        "pipeline/monitor/limits.py",
        "return None if cost is None or cost_per_minute is None else cost / cost_per_minute",
        "return None if cost_per_minute is None else cost / cost_per_minute",
    ): "there is no cost per minute without a cost",
    (
        "pipeline/monitor/limits.py",
        "return None if cost is None or cost_per_minute is None else cost / cost_per_minute",
        "return None if cost is None else cost / cost_per_minute",
    ): "a cost without a price is refused by the configuration",
}


class Runner:
    """The pytest plugin that runs the mutants of ``modules`` in place of the tests."""

    def __init__(self, modules: Sequence[str], sample: int | None, seed: int) -> None:
        self.modules, self._sample, self._seed = modules, sample, seed
        self.killed, self.tried, self.survivors = Counter[str](), Counter[str](), list[Mutant]()
        self.has_failed = False
        self._seconds: dict[pytest.Item, float] = {}
        self._reached: dict[tuple[str, int], set[pytest.Item]] = defaultdict(set)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """A failing example is enough; nobody reads a small one."""
        from hypothesis import Phase, settings  # pytest must be the first to import it

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings.get_profile("patient"), phases=phases)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has failed."""
        self.has_failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All tests once, then all mutants."""
        for item in session.items:
            self._trace(item)
            if self.has_failed:
                pytest.exit(f"{item.nodeid} fails without any change", 3)
        functions: dict[str, list[FunctionType]] = defaultdict(list)
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType):
                functions[thing.__code__.co_filename].append(thing)
        gc.freeze()  # forks share the memory
        for module in self.modules:
            mutants = [
                m for m in mutants_of(module) if (module, m.before, m.after) not in EQUIVALENT
            ]
            if self._sample is not None:
                count = min(self._sample, len(mutants))
                mutants = random.Random(self._seed).sample(mutants, count)
            for mutant in mutants:
                self._try(mutant, functions[str(ROOT / module)])
            print(f"{module}: {self.killed[module]} of {self.tried[module]} noticed", flush=True)
        return True

    def _trace(self, item: pytest.Item) -> None:
        """Run a test, and note the lines that it reaches."""
        files = {str(ROOT / module): module for module in self.modules}
        lines = set[tuple[str, int]]()

        def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
            module = files.get(frame.f_code.co_filename)
            if module is None:
                return None
            lines.add((module, frame.f_lineno))
            return trace

        started = time.perf_counter()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            self._run(item)
        finally:
            sys.settrace(None)
            threading.settrace(None)
        self._seconds[item] = time.perf_counter() - started
        for line in lines:
            self._reached[line].add(item)

    def _run(self, item: pytest.Item) -> None:
        class Next:  # the fixtures of the session stay
            listchain = staticmethod(lambda: [item.session])

        item.config.hook.pytest_runtest_protocol(item=item, nextitem=Next)

    def _try(self, mutant: Mutant, functions: Sequence[FunctionType]) -> None:
        items = sorted(self._reached[mutant.module, mutant.line], key=self._seconds.__getitem__)
        self.tried[mutant.module] += 1
        if items and self._fails(items, mutant, functions):
            self.killed[mutant.module] += 1
        else:
            self.survivors.append(mutant)
            print(f"{mutant}\n    {len(items)} tests reach it", flush=True)

    def _fails(
        self, items: Sequence[pytest.Item], mutant: Mutant, functions: Sequence[FunctionType]
    ) -> bool:
        """Whether a test fails in a fork with the changed code, or takes too long."""
        child = os.fork()
        if child == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            limit = 64 * 2**30
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for function in functions:
                code = function.__code__
                if new := mutant.codes.get((code.co_qualname, code.co_firstlineno)):
                    function.__code__ = new
            for item in items:
                self._run(item)
                if self.has_failed:
                    os._exit(1)
            os._exit(0)
        deadline = time.monotonic() + 5 + 3 * sum(map(self._seconds.__getitem__, items))
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status != 0
            time.sleep(0.002)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def report(self) -> float:
        """Print the scores; returns that of all modules together."""
        print("\n| module | mutants | killed |\n|---|---|---|")
        for module in (*self.modules, None):
            tried, killed = (
                sum(counts.values()) if module is None else counts[module]
                for counts in (self.tried, self.killed)
            )
            print(f"| {module or 'all'} | {tried} | {killed / max(tried, 1):.0%} |")
        return sum(self.killed.values()) / max(sum(self.tried.values()), 1)


def main() -> int:
    """Print survivors and scores; 1 if the score of all is below `BAR`, 3 if a test fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--sample", type=int, help="only so many mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    os.environ["CI"] = "1"  # the same examples every time
    runner = Runner(given.modules, given.sample, given.seed)
    tests = sorted({f"tests/unit/{test}" for module in given.modules for test in MODULES[module]})
    tests = [test for test in tests if os.path.exists(test)]
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files that nobody waits for
    with TemporaryDirectory(dir=memory) as folder:
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", f"{folder}/tests"]
        code = pytest.main(["-s", *plugins, *tests], [runner])
    if code:
        return int(code)
    return int(runner.report() < BAR)


if __name__ == "__main__":
    raise SystemExit(main())
