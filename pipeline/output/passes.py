"""The passes over an output: the run itself, top-ups with more samples, retries by state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output.layout import OutputListing
from pipeline.output.ledger import AGREE, SAMPLES, Ledger, differences
from pipeline.output.parts import part_metadata
from pipeline.planning import Part, Pass, Picks, Plan, Range, make_plan, missing
from pipeline.reasoning.think_format import State

THREADS = 32
PICKED_BY = ("sample", "attempt", "state", "think_foreign", "answer_foreign")


def plan_run(ledger: Ledger, parts: Sequence[Part]) -> Plan:
    """What is to do of the run itself."""
    listing = ledger.listing()
    return make_plan(parts, listing.parts(), listing.covered(0))


def plan(ledger: Ledger, parts: Sequence[Part], run_pass: Pass) -> Plan:
    """What is to do of ``run_pass``; a later pass goes over the parts that are finished."""
    if run_pass.number == 0:
        return plan_run(ledger, parts)
    listing = ledger.listing()
    there = [part for part in parts if part.name in listing.parts()]
    done = listing.parts(run_pass.number)
    picks = None
    if run_pass.is_retry:
        left = [part for part in there if part.name not in done]
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda part: _picks(ledger, part, run_pass), left)
            picks = {part.name: rows for part, rows in zip(left, found, strict=True) if rows}
    return make_plan(there, done, listing.covered(run_pass.number), picks)


def done(ledger: Ledger, parts: Sequence[Part], run_pass: Pass) -> list[Range]:
    """The ranges whose traces of ``run_pass`` are durable, in finished parts or in the journal."""
    listing, found = ledger.listing(), list[Range]()
    through, covered = listing.parts(run_pass.number), listing.covered(run_pass.number)
    for part in parts:
        start, stop, is_through = part.start, part.stop, part.name in through
        spans = [(start, stop)] if is_through else covered.get(part.name, [])
        if spans:
            picks = _picks(ledger, part, run_pass, is_through) if run_pass.is_retry else None
            whole, gaps = Range(part, start, stop, picks), missing(start, stop, spans)
            pieces = (whole.cut(*span) for span in missing(start, stop, gaps))
            found += [piece for piece in pieces if piece.rows]
    return found


def to_run(ledger: Ledger, samples: int) -> Iterator[Pass]:
    """The run itself, then the top-up to ``samples`` of each row where there are fewer."""
    listing = ledger.listing()
    known = ledger.passes(listing)
    there = _samples_there(ledger, listing, known)
    under_way = [p for p in known if not p.is_retry and p.number not in listing.closed]
    wanted = under_way[0].stop if under_way else max(samples, there)
    if samples != wanted:
        raise OutputError(
            f"output.path {ledger.store.url} has {wanted} samples of each row, or is getting them; "
            f"set sampling.n={wanted}, or choose another output.path"
        )
    if samples > there and _manifest(ledger)["settings"].get(AGREE) is not None:
        raise OutputError(
            f"sampling.n can't be raised from {there}: with sampling.agree, rows that agree have "
            "fewer samples than that; choose another output.path"
        )
    yield Pass(0, 0, there)
    if under_way:
        yield under_way[0]
    elif samples > there:
        more = Pass(_next(known), there, samples)
        ledger.open_pass(more)
        yield more


def to_retry(
    ledger: Ledger, settings: Mapping[str, Any], states: Sequence[str], foreign: float | None
) -> Pass:
    """A new retry of the traces in ``states`` or too ``foreign``, or the same if under way."""
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
    changes = differences(manifest["settings"], settings)
    changed = tuple((key, value) for key, value in changes if key != SAMPLES)
    there = _samples_there(ledger, listing, known)
    wanted = Pass(_next(known), 0, there, tuple(sorted(set(states))), changed, foreign)
    for open_pass in known:
        if open_pass.is_retry and open_pass.number not in listing.closed:
            if replace(open_pass, number=0, stop=0) == replace(wanted, number=0, stop=0):
                return open_pass
            raise OutputError(f"another retry is under way; finish it first: {_command(open_pass)}")
    ledger.open_pass(wanted)
    return wanted


def samples_there(ledger: Ledger) -> int:
    """How many samples each row has, top-ups that are over counted."""
    listing = ledger.listing()
    return _samples_there(ledger, listing, ledger.passes(listing))


def _samples_there(ledger: Ledger, listing: OutputListing, known: Iterable[Pass]) -> int:
    over = [p.stop for p in known if not p.is_retry and p.number in listing.closed]
    return max([int(_manifest(ledger)["settings"][SAMPLES]), *over])


def _manifest(ledger: Ledger) -> dict[str, Any]:
    manifest = ledger.manifest()
    assert manifest is not None
    return manifest


def _next(known: Sequence[Pass]) -> int:
    return max((p.number for p in known), default=0) + 1


def _command(run_pass: Pass) -> str:
    changes = "".join(
        f" --set {key}={'null' if value is None else value}" for key, value in run_pass.changed
    )
    states = f" --state {','.join(run_pass.states)}" if run_pass.states else ""
    foreign = f" --foreign {run_pass.foreign}" if run_pass.foreign is not None else ""
    return f"qwq-batch retry CONFIG{states}{foreign}{changes}"


def _picks(ledger: Ledger, part: Part, run_pass: Pass, is_through: bool = False) -> Picks:
    """The rows and samples of a finished part that the retry ``run_pass`` is to do again.

    Of one that has been through it (``is_through``) those that it has done.
    """
    footer = part_metadata(ledger.store, part.name)
    ended_so = any(map(footer["summary"]["states"].get, run_pass.states))
    if run_pass.foreign is None and not ended_so and not is_through:
        return ()
    names = [footer["columns"][name] for name in PICKED_BY]
    with ledger.store.open(part.name) as file:
        table = pq.read_table(file, columns=names)
    picks: dict[int, list[int]] = {}
    row = part.start - 1
    traces = zip(*(table[name].to_pylist() for name in names), strict=True)
    for sample, attempt, state, *shares in traces:
        row += sample == 0
        is_foreign = run_pass.foreign is not None and max(s or 0 for s in shares) > run_pass.foreign
        if attempt == run_pass.number if is_through else state in run_pass.states or is_foreign:
            picks.setdefault(row, []).append(sample)
    return tuple((row, tuple(samples)) for row, samples in picks.items())
