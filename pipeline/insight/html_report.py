"""The report of an output: one HTML file that needs no network, and in which no trace can run.

    text = page("s3://bucket/traces")

All that comes from rows is escaped by the template or by `pipeline.insight.markup`; the page's own policy
(CSP) lets no script run but its own.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.insight.charts import histogram, line, strip
from pipeline.insight.markup import rendered
from pipeline.insight.status import Status, status
from pipeline.insight.trace_statistics import PARTS_LOOKED_AT, TraceStatistics, count, examples
from pipeline.monitor.figures import Figures, bin_floor, clock, quantile
from pipeline.monitor.history import all_figures
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import software_versions
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage

PAGES = Path(__file__).parent / "pages"
MEANINGS = {
    State.FINISHED: "thought and answered",
    State.RESCUED: "its thinking was closed for it, then it answered",
    State.UNPARSED: "answered, but not in the form that was asked for",
    State.TRUNCATED: "its tokens ran out",
    State.LOOPED: "went in circles, no answer",
    State.EMPTY: "ended its turn without an answer",
    State.FAILED: "never generated",
}
# Of a text in the page; the middle of a longer one is left out.
LONGEST_TEXT = 24_000
PREVIEW = 120
# Points of a chart over time, engines in it, reasons of failures.
MOST_POINTS, MOST_STRIPS, MOST_REASONS = 240, 64, 20


def page(url: str) -> str:
    """The report of the output at ``url``; raises `OutputError` if it is none."""
    store, now = Storage(url), status(url)
    parts = sorted(Ledger(store).listing().finished_parts())
    found, runs = count(store, parts), list(all_figures(store))
    css, script = ((PAGES / f"report.{kind}").read_text() for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((PAGES / "report.html").read_text())
    traces = [_trace(part, trace) for part, trace in examples(store, parts)]
    traces.sort(key=lambda trace: list(State).index(trace["state"]))
    return template.render(
        css=Markup(css),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        script_hash=f"sha256-{digest}",
        url=now.url,
        model=now.settings.get("model.path"),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        running=now.is_running,
        tiles=list(_tiles(now, found, runs)),
        notes=list(_notes(now)),
        states=list(_states(found)),
        judged=bool(found.correct),
        lengths=list(_lengths(found)),
        time=_over_time(runs),
        second=list(_second_chances(found)),
        given_up=_given_up(found),
        errors=[(error, f"{n:,}") for error, n in found.errors.most_common(MOST_REASONS)],
        cost=list(_cost(found, runs)),
        traces=traces,
        shown_states=sorted({trace["state"] for trace in traces}, key=list(State).index),
        looked_at=f"{min(len(parts), PARTS_LOOKED_AT):,} of {len(parts):,} finished parts",
        settings=[(name, _short(str(value), 500)) for name, value in now.settings.items()],
        versions=sorted(software_versions().items()),
    )


def _tiles(
    now: Status, found: TraceStatistics, runs: Sequence[Sequence[Figures]]
) -> Iterator[tuple[str, str]]:
    yield f"{now.rows_durable:,}", f"rows durable, of {now.rows:,}"
    yield f"{found.traces:,}", "traces in finished parts"
    good = found.states[State.FINISHED] + found.states[State.RESCUED]
    if found.traces:
        yield f"{good / found.traces:.1%}", "finished or rescued"
    made = found.tokens["think_tokens"] + found.tokens["answer_tokens"]
    yield _many(made), "tokens of thinking and answers"
    hours, cost = _gpu_hours(runs), _money(runs)
    if hours:
        yield f"{hours:,.2f}", "GPU-hours"
    if cost is not None:
        yield f"{cost:,.2f}", "cost"


def _notes(now: Status) -> Iterator[str]:
    if now.parts_done < now.parts:
        yield (
            f"{now.parts - now.parts_done:,} of {now.parts:,} parts are not finished; what follows "
            "is of the finished ones."
        )
    for run_pass in now.open_passes:
        yield f"Pass {run_pass.number} is not over: some of its traces are still those of before."


def _states(found: TraceStatistics) -> Iterator[dict[str, Any]]:
    for state in State:
        if n := found.states[state]:
            right, wrong = (found.correct[state, value] for value in (True, False))
            judged = right + wrong
            yield {
                "name": str(state),
                "count": n,
                "told": f"{n:,}",
                "share": f"{n / found.traces:.1%}",
                "right": f"{right / judged:.1%} of {judged:,}" if judged else "",
                "meaning": MEANINGS[state],
            }


def _lengths(found: TraceStatistics) -> Iterator[dict[str, Any]]:
    for name, bins in (("thinking", found.think), ("answer", found.answer)):
        if not bins:
            continue
        first, last = min(bins), max(bins)
        marks = (first, (first + last + 1) // 2, last + 1)
        told = ", ".join(
            f"{share:.0%} up to {quantile(bins, share) or 0:,.0f}" for share in (0.5, 0.95, 0.99)
        )
        yield {
            "title": f"{name}, tokens (traces by length, doubling)",
            "svg": histogram(bins, first, last),
            "marks": [f"{bin_floor(number):,.0f}" for number in marks],
            "told": told,
        }


def _over_time(runs: Sequence[Sequence[Figures]]) -> dict[str, Any] | None:
    """All runs, one after the other: the time between them is left out."""
    width = sum(run[-1].seconds for run in runs)
    if not width:
        return None
    rates, done = list[tuple[float, float]](), list[tuple[float, float]]()
    strips: dict[int, list[tuple[float, float, float, str]]] = {}
    offset, before, slots_used, slots_there = 0.0, 0, 0.0, 0.0
    for run in runs:
        lines = _thinned(run, max(2, int(MOST_POINTS * run[-1].seconds / width)))
        rows: dict[str, int] = {}
        rates.append((offset, 0.0))
        for last, now in pairwise([Figures("", 0.0, 0, 0), *lines]):
            at = offset + now.seconds
            spent = now.tokens["spent"] - last.tokens.get("spent", 0)
            rates.append((at, spent / max(1e-9, now.seconds - last.seconds)))
            done.append((at, before + now.rows))
            for engine in now.engines:
                row = rows.setdefault(engine.name, len(rows))
                share = engine.running / now.engine_pool.slots
                told = f"{engine.name}: {engine.running:,} running, {engine.waiting:,} waiting"
                strips.setdefault(row, []).append((offset + last.seconds, at, share, told))
            if now.ready_seconds is not None:
                seconds = now.seconds - max(last.seconds, now.ready_seconds)
                slots_used += max(0.0, seconds) * now.running
                slots_there += max(0.0, seconds) * now.engine_pool.slots * now.engine_pool.replicas
        offset, before = offset + run[-1].seconds, before + run[-1].rows
    top = max(rate for _, rate in rates)
    tail = _tail(runs[-1])
    remarks = {
        f"engines had {slots_used / max(1e-9, slots_there):.0%} of their slots in use": slots_there,
        f"the last {clock(tail)} with less than half of them": tail,
        f"{len(runs):,} runs (or tiers), one after the other": len(runs) > 1,
        f"the first {MOST_STRIPS} of {len(strips):,} engines": len(strips) > MOST_STRIPS,
    }
    return {
        "rates": line(rates, width, top),
        "top": f"{top:,.0f}",
        "marks": [clock(0), clock(width / 2), clock(width)],
        "done": line(done, width, before or 1),
        "rows": f"{before:,} in these runs",
        "strips": [strip(strips[row], width) for row in sorted(strips)[:MOST_STRIPS]],
        "told": "; ".join(remark for remark, is_so in remarks.items() if is_so),
    }


def _tail(run: Sequence[Figures]) -> float:
    """Seconds at the end of a run in which less than half of the slots ever in use were."""
    most = max(figures.running for figures in run)
    busy = [figures.seconds for figures in run if figures.running * 2 >= most > 0]
    return run[-1].seconds - busy[-1] if busy else 0.0


def _thinned(run: Sequence[Figures], most: int) -> list[Figures]:
    step = -(-len(run) // most)
    return [*run[:-1:step], run[-1]] if run else []


def _second_chances(found: TraceStatistics) -> Iterator[dict[str, str]]:
    rows = [
        ("thinking closed: the budget was used up", _where(found.closed, "budget")),
        ("thinking closed: it went in circles", _where(found.closed, "loop")),
        ("begun again, because it went in circles", found.begun_again),
        ("done again by qwq-batch retry", found.retried),
    ]
    for what, ended in rows:
        if ended:
            told = ", ".join(f"{n:,} {state}" for state, n in ended.most_common())
            yield {"what": what, "count": f"{sum(ended.values()):,}", "ended": told}


def _where(pairs: Mapping[tuple[str, str], int], first: str) -> Counter[str]:
    return Counter({second: n for (one, second), n in pairs.items() if one == first})


def _given_up(found: TraceStatistics) -> str:
    wasted, made = found.tokens["wasted_tokens"], found.tokens["think_tokens"]
    made += found.tokens["answer_tokens"] + wasted
    return (
        f"{wasted:,} tokens ({wasted / made:.1%} of all) were given up with them." if wasted else ""
    )


def _cost(found: TraceStatistics, runs: Sequence[Sequence[Figures]]) -> Iterator[tuple[str, str]]:
    tokens, hours, cost = found.tokens, _gpu_hours(runs), _money(runs)
    yield "prompt tokens", f"{tokens['prompt_tokens']:,}"
    yield "tokens of thinking", f"{tokens['think_tokens']:,}"
    yield "tokens of answers", f"{tokens['answer_tokens']:,}"
    if tokens["carried_tokens"]:
        yield "of these, carried over from engines that were ended", f"{tokens['carried_tokens']:,}"
    if tokens["wasted_tokens"]:
        yield "tokens given up (traces begun again)", f"{tokens['wasted_tokens']:,}"
    if hours:
        yield "engines were there for", clock(sum(run[-1].seconds for run in runs))
        yield "GPU-hours (with device cpu, of CPU processes)", f"{hours:,.3f}"
    if cost is not None:
        yield "cost", f"{cost:,.2f}"
        good = found.states[State.FINISHED] + found.states[State.RESCUED]
        if good:
            yield "cost of 1,000 traces that finished or were rescued", f"{cost / good * 1000:,.2f}"


def _gpu_hours(runs: Sequence[Sequence[Figures]]) -> float:
    return sum(run[-1].engine_pool.gpu_hours(run[-1].seconds) for run in runs)


def _money(runs: Sequence[Sequence[Figures]]) -> float | None:
    costs = [run[-1].engine_pool.cost(run[-1].seconds) for run in runs]
    return sum(cost for cost in costs if cost is not None) if any(costs) else None


def _trace(part: str, trace: Mapping[str, Any]) -> dict[str, Any]:
    counts = {kind: trace[f"{kind}_tokens"] or 0 for kind in ("prompt", "think", "answer")}
    about = [f"{part}, sample {trace['sample']}", f"seed {trace['seed']}"]
    about += [f"finish_reason {trace['finish_reason']}"] if trace["finish_reason"] else []
    for name in (
        "closed_by",
        "parsed",
        "correct",
        "vote",
        "duplicate_of",
        "attempt",
        "loop_retries",
    ):
        value = trace.get(name)
        if value or value is False:
            about.append(f"{name} {_short(str(value), PREVIEW)}")
    given = [(name, _text(value)) for name, value in trace["input"].items()]
    answer = _short(trace["answer"] or "", LONGEST_TEXT)
    preview = next((text for name, text in given if name in ("prompt", "messages")), "")
    preview = preview or (given[0][1] if given else "")
    return {
        "state": trace["state"],
        "tokens": " · ".join(f"{n:,} {kind}" for kind, n in counts.items()),
        "think_tokens": f"{counts['think']:,}",
        "preview": _short(" ".join(preview.split()), PREVIEW),
        "about": ", ".join(about),
        "input": given,
        "error": trace["error"],
        "think": _short(trace["think"] or "", LONGEST_TEXT),
        "answer": answer,
        "rendered": rendered(answer),
        "raw": _short(trace.get("raw") or "", LONGEST_TEXT),
    }


def _text(value: Any) -> str:
    return _short(value if isinstance(value, str) else repr(value), LONGEST_TEXT)


def _short(text: str, most: int) -> str:
    """``text``, its middle left out where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    left_out = len(text) - most
    return f"{text[: most // 2]}\n… {left_out:,} characters left out …\n{text[-(most // 2) :]}"


def _many(number: float) -> str:
    for unit, name in ((1e9, " bn"), (1e6, " m"), (1e4, " k")):
        if number >= unit:
            return f"{number / (1e3 if unit == 1e4 else unit):,.1f}{name}"
    return f"{number:,.0f}"
