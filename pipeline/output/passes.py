"""The passes over an output: the run itself, top-ups with more samples, and retries."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output.layout import OutputListing
from pipeline.output.ledger import Ledger, differences
from pipeline.output.merge import fragment_tables
from pipeline.output.parts import (
    AGREE,
    SAMPLES,
    holds_pass,
    part_metadata,
    read_footers,
    samples_in,
)
from pipeline.planning import Part, PartRef, Pass, Picks, Plan, Range, gaps, make_plan
from pipeline.reasoning.think_format import State
from pipeline.schema import ROW_COLUMN, row_numbers
from pipeline.storage import map_in_threads

PICKED_BY = ("sample", "attempt", "state", "think_foreign", "answer_foreign")


def plan_run(ledger: Ledger, parts: Sequence[Part]) -> Plan:
    """The `Plan` of the run itself."""
    listing = ledger.listing()
    return make_plan(parts, listing.finished_parts(), listing.durable_ranges(0))


def plan_pass(ledger: Ledger, parts: Sequence[Part], run_pass: Pass) -> Plan:
    """The `Plan` of ``run_pass``. A retry or top-up covers only parts that the run has finished."""
    if run_pass.number == 0:
        return plan_run(ledger, parts)
    listing = ledger.listing()
    run_finished, pass_finished = listing.finished_parts(), listing.finished_parts(run_pass.number)
    covered = [part for part in parts if part.name in run_finished]
    picks = None
    if run_pass.is_retry:
        unfinished = [part for part in covered if part.name not in pass_finished]
        choices = map_in_threads(lambda part: _traces_to_retry(ledger, part, run_pass), unfinished)
        picks = {part.name: rows for part, rows in zip(unfinished, choices, strict=True) if rows}
    return make_plan(covered, pass_finished, listing.durable_ranges(run_pass.number), picks)


def recover_marks(ledger: Ledger, parts: Sequence[Part], run_pass: Pass) -> None:
    """Mark the parts that hold the traces of a retry or top-up, but were not marked as finished.

    A part and its mark are two writes, and a driver can die between them.
    """
    listing = ledger.listing()
    unmarked = listing.finished_parts() - listing.finished_parts(run_pass.number)
    refs = [PartRef.of(part) for part in parts if part.name in unmarked]
    footers = read_footers(ledger.store, [ref.name for ref in refs])
    for ref, footer in zip(refs, footers, strict=True):
        if holds_pass(footer, run_pass):
            ledger.finish(ref, run_pass.number)


def durable_ranges(ledger: Ledger, parts: Sequence[Part], run_pass: Pass) -> list[Range]:
    """The ranges whose traces of ``run_pass`` are durable, in finished parts or in fragments."""
    listing, durable = ledger.listing(), list[Range]()
    finished = listing.finished_parts(run_pass.number)
    fragments = listing.durable_ranges(run_pass.number)
    for part in parts:
        start, stop = part.start, part.stop
        ranges = [(start, stop)] if part.name in finished else fragments.get(part.name, [])
        if not ranges:
            continue
        picks = None
        if run_pass.is_retry and part.name in finished:
            picks = _retried_traces(ledger, part, run_pass)
        elif run_pass.is_retry:
            picks = _traces_in_fragments(ledger, part, run_pass)
        whole, open_ranges = Range(part, start, stop, picks), gaps(start, stop, ranges)
        pieces = (whole.clip(*piece) for piece in gaps(start, stop, open_ranges))
        durable += [piece for piece in pieces if piece.rows]
    return durable


def to_run(ledger: Ledger, parts: Sequence[Part], samples: int) -> Iterator[Pass]:
    """The run itself, then the top-ups to ``samples`` per row of parts that have fewer.

    Opens a top-up when it is reached. Raises `OutputError` if the output has, or is getting, more
    samples, or can't get more, and `PassOpenedError` if a pass was opened since the first look.
    """
    listing = ledger.listing()
    known = ledger.passes(listing)
    present = _samples_per_row(ledger, listing, known)
    open_top_ups = [p for p in known if not p.is_retry and p.number not in listing.closed]
    begun = [present, *(top_up.stop for top_up in open_top_ups)]
    required = max(begun) if open_top_ups else max(present, samples)
    if samples != required:
        raise OutputError(
            f"output.path {ledger.store.url} has {required} samples of each row, or is getting "
            f"them; set sampling.n={required}, or choose another output.path"
        )
    if samples > present and _manifest(ledger)["settings"].get(AGREE) is not None:
        raise OutputError(
            f"sampling.n can't be raised from {present}: with sampling.agree, rows that agree have "
            "fewer samples than that; choose another output.path"
        )
    yield Pass(0, 0, present)
    numbers = count(_next_number(known))
    has_top_ups = any(not p.is_retry and p.number in listing.closed for p in known)
    for stop in sorted({present, samples, *(top_up.stop for top_up in open_top_ups)}):
        if open_now := [p for p in open_top_ups if p.stop == stop]:
            yield open_now[0]
        elif stop > present:
            yield _opened(ledger, Pass(next(numbers), present, stop))
        elif has_top_ups and (fewest := _fewest_samples(ledger, parts)) < stop:
            # A closed top-up has left parts out: their shards were not among the input.
            yield _opened(ledger, Pass(next(numbers), fewest, stop))


def _opened(ledger: Ledger, top_up: Pass) -> Pass:
    ledger.open_pass(top_up)
    return top_up


def _fewest_samples(ledger: Ledger, parts: Sequence[Part]) -> int:
    """The number of samples per row in the finished part that has the fewest."""
    finished = ledger.listing().finished_parts()
    names = [part.name for part in parts if part.rows and part.name in finished]
    footers = read_footers(ledger.store, names)
    return min(map(samples_in, footers), default=sys.maxsize)


def to_retry(
    ledger: Ledger, settings: Mapping[str, Any], states: Sequence[str], foreign: float | None
) -> Pass:
    """The open retry if it has the same arguments, otherwise a new one, now opened.

    ``settings``: the current ones, as `pipeline.output.manifest` makes them. ``states``: of the
    traces to retry. ``foreign``: retry traces with more than this share of letters in foreign
    scripts. Raises `OutputError` if there is no run, nothing to select, or another retry is open.
    """
    listing = ledger.listing()
    known = ledger.passes(listing)
    manifest = ledger.manifest()
    if manifest is None:
        raise OutputError(f"output.path {ledger.store.url} holds no run; there is nothing to retry")
    unknown = sorted(set(states) - set(State))
    if not states and foreign is None:
        raise OutputError("say which traces: --state STATE,… or --foreign SHARE, or both")
    if unknown:
        raise OutputError(f"--state {','.join(unknown)}: states are {', '.join(State)}")
    differing = differences(manifest["settings"], settings)
    changed = tuple((key, value) for key, value in differing if key != SAMPLES)
    present = _samples_per_row(ledger, listing, known)
    retry = Pass(_next_number(known), 0, present, tuple(sorted(set(states))), changed, foreign)
    for open_pass in known:
        if open_pass.is_retry and open_pass.number not in listing.closed:
            if replace(open_pass, number=0, stop=0) == replace(retry, number=0, stop=0):
                return open_pass
            raise OutputError(f"another retry is under way; finish it first: {_command(open_pass)}")
    ledger.open_pass(retry)
    return retry


def samples_per_row(ledger: Ledger) -> int:
    """The number of samples of each row, including those of closed top-ups."""
    listing = ledger.listing()
    return _samples_per_row(ledger, listing, ledger.passes(listing))


def _samples_per_row(ledger: Ledger, listing: OutputListing, known: Iterable[Pass]) -> int:
    top_ups = [p.stop for p in known if not p.is_retry and p.number in listing.closed]
    return max([ledger.first_samples(), *top_ups])


def _manifest(ledger: Ledger) -> dict[str, Any]:
    manifest = ledger.manifest()
    assert manifest is not None
    return manifest


def _next_number(known: Sequence[Pass]) -> int:
    return max((p.number for p in known), default=0) + 1


def _command(run_pass: Pass) -> str:
    """The command line of a retry."""
    changes = "".join(
        f" --set {key}={'null' if value is None else value}" for key, value in run_pass.changed
    )
    states = f" --state {','.join(run_pass.states)}" if run_pass.states else ""
    foreign = f" --foreign {run_pass.foreign}" if run_pass.foreign is not None else ""
    return f"qwq-batch retry CONFIG{states}{foreign}{changes}"


def _traces_to_retry(ledger: Ledger, part: Part, run_pass: Pass) -> Picks:
    """The traces of a finished part that the retry ``run_pass`` selects."""
    metadata = part_metadata(ledger.store, part.name)
    has_states = any(map(metadata["summary"]["states"].get, run_pass.states))
    if run_pass.foreign is None and not has_states:
        return ()

    def is_selected(_attempt: int, state: str, foreign: float) -> bool:
        is_foreign = run_pass.foreign is not None and foreign > run_pass.foreign
        return state in run_pass.states or is_foreign

    return _pick(ledger, part, metadata["columns"], is_selected)


def _retried_traces(ledger: Ledger, part: Part, run_pass: Pass) -> Picks:
    """The traces that the retry ``run_pass`` has made in a part that has finished it."""
    columns = part_metadata(ledger.store, part.name)["columns"]
    return _pick(ledger, part, columns, lambda attempt, _, __: attempt == run_pass.number)


def _traces_in_fragments(ledger: Ledger, part: Part, run_pass: Pass) -> Picks:
    """The traces that the retry ``run_pass`` has made in a part that has not finished it.

    Not those that it would select now: a top-up may have added some to the rows between them.
    """
    sample = part_metadata(ledger.store, part.name)["columns"]["sample"]
    picks: dict[int, list[int]] = {}
    fragments = ledger.fragments(PartRef.of(part), run_pass.number)
    for table in fragment_tables(fragments, ledger.store.read_all):
        for row, number in zip(*(table[n].to_pylist() for n in (ROW_COLUMN, sample)), strict=True):
            picks.setdefault(row, []).append(number)
    return tuple((row, tuple(samples)) for row, samples in picks.items())


def _pick(
    ledger: Ledger,
    part: Part,
    columns: Mapping[str, str],
    is_selected: Callable[[int, str, float], bool],
) -> Picks:
    """The traces of a finished part that ``is_selected`` by attempt, state and foreign share."""
    names = [columns[name] for name in PICKED_BY]
    with ledger.store.open(part.name) as file:
        table = pq.read_table(file, columns=names)
    rows = row_numbers(table[columns["sample"]].to_numpy(), part.start).tolist()
    picks: dict[int, list[int]] = {}
    traces = zip(*(table[name].to_pylist() for name in names), strict=True)
    for row, (sample, attempt, state, *shares) in zip(rows, traces, strict=True):
        if is_selected(attempt, state, max(share or 0 for share in shares)):
            picks.setdefault(row, []).append(sample)
    return tuple((row, tuple(samples)) for row, samples in picks.items())
