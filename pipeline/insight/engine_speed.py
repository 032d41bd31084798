"""The speed of an engine, measured from the recorded figures of runs; no I/O."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.protocol import TOKENS_A_REPORT
from pipeline.monitor.figures import EnginePool, Figures

# Speed is measured while an engine runs at least this share of the most sequences it ever had.
NEARLY_FULL = 0.8
# Engines report tokens in batches, so a rate needs a stretch of at least this length.
STRETCH_SECONDS = 10.0
# An engine's pace over minutes predicts its pace over hours to within this share.
PACE_VARIATION = 0.1


@dataclass(frozen=True)
class Speed:
    """The speed of one nearly full engine, measured over several stretches of time.

    ``tokens`` and ``seconds``: output tokens and engine-seconds of each stretch. ``running``: mean
    number of sequences of the engine. ``ready_seconds``: the longest start of such an engine.
    """

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    running: float
    ready_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Output tokens per second over all stretches."""
        return sum(self.tokens) / sum(self.seconds)

    def resample(self, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Bootstrap tokens per second (shape: draws): resampled stretches, each with a pace."""
        chosen = rng.integers(0, len(self.tokens), (draws, len(self.tokens)))
        tokens, seconds = np.array(self.tokens)[chosen], np.array(self.seconds)[chosen]
        pace = rng.uniform(1 - PACE_VARIATION, 1 + PACE_VARIATION, draws)
        return np.asarray(pace * tokens.sum(axis=1) / seconds.sum(axis=1))


class _Span(NamedTuple):
    """What engines did between two recorded figures; ``running``: fewest sequences per engine."""

    running: float
    tokens: float
    seconds: float


def measure_speed(runs: Iterable[Sequence[Figures]], engine_pool: EnginePool) -> Speed | None:
    """The speed of engines with the GPUs and slots of ``engine_pool``; None without a record.

    ``runs``: the recorded figures of each run, in order of time.
    """
    alike = [[f for f in figures if _is_alike(f.engine_pool, engine_pool)] for figures in runs]
    records = [record for record in alike if record]
    starts = [record[-1].ready_seconds for record in records]
    spans = [span for record in records for span in _spans(record)]
    most = max((span.running for span in spans), default=0)
    full = [span for span in spans if span.running >= NEARLY_FULL * most > 0]
    tokens, seconds = zip(*_stretches(full), strict=True)
    if not sum(tokens):
        return None
    running = float(np.mean([span.running for span in full]))
    return Speed(tokens, seconds, running, max([0.0, *(s for s in starts if s is not None)]))


def _is_alike(one: EnginePool, other: EnginePool) -> bool:
    return (one.gpus, one.slots) == (other.gpus, other.slots)


def _spans(record: Sequence[Figures]) -> Iterator[_Span]:
    unreported = _unreported_tokens(record[-1])
    for before, after in pairwise(record):
        since = max(before.seconds, after.ready_seconds or 0)
        seconds = (after.seconds - since) * len(after.engines)
        if seconds > 0:
            running = after.running / len(after.engines)
            # In the first span of a run, all slots are taken at once.
            if before.running or before.tokens["spent"]:
                running = min(running, before.running / max(1, len(before.engines)))
            reported = after.tokens["spent"] - before.tokens["spent"]
            tokens = reported + unreported * (after.running - before.running)
            yield _Span(running, tokens, seconds)


def _unreported_tokens(figures: Figures) -> float:
    """Tokens that a running sequence has generated but not reported, on average."""
    traces = sum(figures.states.values())
    mean = figures.tokens.get("output", 0) / traces if traces else TOKENS_A_REPORT
    return min(mean, TOKENS_A_REPORT) / 2


def _stretches(spans: Sequence[_Span]) -> list[tuple[float, float]]:
    """Tokens and seconds of ``spans``, joined to stretches of at least `STRETCH_SECONDS`."""
    stretches = [(0.0, 0.0)]
    for span in spans:
        if stretches[-1][1] >= STRETCH_SECONDS:
            stretches.append((0.0, 0.0))
        tokens, seconds = stretches[-1]
        stretches[-1] = tokens + span.tokens, seconds + span.seconds
    if len(stretches) > 1 and stretches[-1][1] < STRETCH_SECONDS:
        last_tokens, last_seconds = stretches.pop()
        tokens, seconds = stretches[-1]
        stretches[-1] = tokens + last_tokens, seconds + last_seconds
    return stretches
