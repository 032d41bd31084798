"""What the loop detector finds in traces that are at hand, and what it would have stopped.

    python -m jobs.bench loops out/my-run --tokenizer Qwen/QwQ-32B

Reads the output of a run (best of one with ``thinking.rescue=false`` and
``thinking.detect_loops=false``), or JSON lines, also gzipped, with ``text`` and ``ended``: whether
the model ended its turn. A trace that was cut off circles if, in each window of
1,024 tokens from some token on, at least 70 % of all 12-token passages stood in the trace before.
"""

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.tables import keep, markdown
from pipeline.output.reader import read_traces
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.repetition import CHECK_TOKENS, RepetitionDetector, loop_onset

PASSAGE, WINDOW, SHARE = 12, 1024, 0.7
LONG = 4096  # tokens of circling, enough for any detector


@dataclass(frozen=True)
class Result:
    """One trace: its tokens, how many of them circle at its end, where it was found to loop.

    ``onset``: where the pipeline would cut the loop off; None if that is not certain.
    """

    ended: bool
    tokens: int
    circling: int
    found_at: int | None
    seconds: float
    onset: int | None = None


def circling_tokens(token_ids: Sequence[int]) -> int:
    """How many tokens at the end only go over what stood before; 0 if fewer than `WINDOW`."""
    before = set[tuple[int, ...]]()
    old = np.zeros(len(token_ids) + 1, np.int64)
    for end in range(PASSAGE, len(token_ids) + 1):
        passage = tuple(token_ids[end - PASSAGE : end])
        old[end] = passage in before
        before.add(passage)
    counts = np.cumsum(old)
    is_new = counts[WINDOW:] - counts[:-WINDOW] < SHARE * WINDOW
    windows = len(is_new) - (int(np.flatnonzero(is_new)[-1]) + 1 if is_new.any() else 0)
    return windows + WINDOW - 1 if windows > 0 else 0


def measured(text: str, ended: bool, tokenizer: Any) -> Result:
    """Run the detector over one trace, up to where it finds a loop."""
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    decode = tokenizer.backend_tokenizer.decode
    detector, found_at, onset = RepetitionDetector(lambda ids: str(decode(ids))), None, None
    start = time.thread_time()
    for at in range(0, len(token_ids), CHECK_TOKENS):
        if detector.add(token_ids[at : at + CHECK_TOKENS]):
            found_at = at + CHECK_TOKENS
            onset = loop_onset(token_ids[:found_at], lambda ids: str(decode(ids)))
            break
    seconds = time.thread_time() - start
    circling = 0 if ended else circling_tokens(token_ids)
    return Result(ended, len(token_ids), circling, found_at, seconds, onset)


def table(results: Sequence[Result]) -> str:
    """How many of each kind the detector found, and how long after they began to circle."""
    cut = [r for r in results if not r.ended]
    groups = {
        f"cut off, circling for {LONG:,} tokens or more": [r for r in cut if r.circling >= LONG],
        f"cut off, circling for {WINDOW:,} tokens or more": [r for r in cut if r.circling],
        "cut off otherwise": [r for r in cut if not r.circling],
        "ended by themselves": [r for r in results if r.ended],
    }
    lines = []
    for name, group in groups.items():
        found = [r for r in group if r.found_at is not None]
        certain = [r for r in found if r.onset is not None]
        cut_off = [(r.found_at or 0) - (r.onset or 0) for r in certain]
        begin = f"{len(certain):,}", f"{statistics.median(cut_off):,.0f}" if cut_off else "–"
        late = [(r.found_at or 0) - (r.tokens - r.circling) for r in found if r.circling]
        delay = f"{statistics.median(late):,.0f}" if late else "–"
        share = f"{len(found) / len(group):.2%}" if group else "–"
        lines.append([name, f"{len(group):,}", f"{len(found):,}", share, delay, *begin])
    seen = sum(min(r.tokens, r.found_at or r.tokens) for r in results)
    cost = sum(r.seconds for r in results) / max(seen, 1)
    head = [
        "traces", "all", "found to loop", "share", "tokens after their start, median",
        "onset certain", "tokens cut off, median",
    ]  # fmt: skip
    return f"{markdown(head, lines)}\n\n{seen:,} tokens, {cost * 1e6:.2f} µs each"


def traces(path: str) -> Iterator[tuple[str, bool]]:
    """The text of each trace, and whether it ended by itself."""
    if path.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(path, "rt") if path.endswith(".gz") else Path(path).open() as lines:
            for line in map(json.loads, lines):
                yield line["text"], line["ended"]
        return
    for row in read_traces(path, ["raw", "finish_reason"]):
        if row["raw"] is not None:
            yield row["raw"], row["finish_reason"] == "stop"


def main(args: argparse.Namespace, folder: Path) -> None:
    """A line for each kind of trace."""
    tokenizer = load_tokenizer(args.tokenizer)
    results = [measured(text, ended, tokenizer) for text, ended in traces(args.traces)]
    keep(folder, "loops", table(results), {"results": [asdict(r) for r in results]})
