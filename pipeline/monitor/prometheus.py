"""The coordinator's figures for Prometheus, through Ray's own metrics endpoint on each node.

Ray puts ``ray_`` before each name. The coordinator runs on the driver's node, so that node's
endpoint has them all.
"""

from ray.util.metrics import Counter, Gauge

from pipeline.monitor.figures import EngineFigures, Totals

PREFIX = "qwq_batch_"
# The label that tells the runs of one cluster apart.
RUN = "output"
TOKENS = ("prompt", "output", "spent", "recomputed", "drafted", "accepted", "probe")


class Metrics:
    """Counters and gauges of one run (in one tier); ``output``: where it writes."""

    def __init__(self, output: str, replicas: int) -> None:
        self._run = {RUN: output}
        self._rows = self._counter("rows", "rows done")
        self._traces = self._counter("traces", "traces that have ended, by state", "state")
        self._tokens = self._counter("tokens", f"tokens: {', '.join(TOKENS)}", "kind")
        self._preemptions = self._counter("preemptions", "sequences that lost their KV cache")
        self._engines = self._gauge("engines", "engines that are ready and not silent")
        self._loads = {
            name: self._gauge(name, description, "engine")
            for name, description in (
                ("running", "sequences that an engine generates"),
                ("waiting", "sequences that wait at an engine"),
                ("kv_usage", "share of an engine's KV cache in use"),
                ("tokens_per_second", "tokens that an engine generates per second"),
            )
        }
        self._rows_to_do = self._gauge("rows_to_do", "rows that the run has to do")
        self._engines_wanted = self._gauge("engines_wanted", "engines that the run asks for")
        self._rows_left = self._gauge("rows_left", "rows that are still to do")
        self._replicas = replicas

    def done(self, totals: Totals) -> None:
        """Add what an engine has done."""
        self._add(self._rows, totals.rows)
        for state, count in totals.states.items():
            self._add(self._traces, count, state=state)
        self._add(self._preemptions, totals.preemptions)
        for kind in TOKENS:
            self._add(self._tokens, getattr(totals, f"{kind}_tokens"), kind=kind)

    def load(self, engine: EngineFigures) -> None:
        """Set the gauges of one engine."""
        for name, gauge in self._loads.items():
            gauge.set(getattr(engine, name) or 0, {**self._run, "engine": engine.name})

    def sizes(self, engines: int, rows: int, rows_done: int) -> None:
        """Set the gauges of the run, often: Ray drops a gauge that is not set for a while."""
        self._engines.set(engines, self._run)
        self._engines_wanted.set(self._replicas, self._run)
        self._rows_to_do.set(rows, self._run)
        self._rows_left.set(rows - rows_done, self._run)

    def _add(self, counter: Counter, count: float, **labels: str) -> None:
        if count > 0:
            counter.inc(count, {**self._run, **labels})

    @staticmethod
    def _gauge(name: str, description: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, description, (RUN, *labels))

    @staticmethod
    def _counter(name: str, description: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, description, (RUN, *labels))
