"""The report of an output: one HTML file that needs no network and in which no trace can run.

    text = page("s3://bucket/traces")

The template or `pipeline.insight.markup` escapes everything that comes from rows. As a second line
of defence, the page's Content Security Policy allows no script but its own.
"""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.errors import OutputError
from pipeline.insight.charts import histogram
from pipeline.insight.markup import rendered
from pipeline.insight.status import Status, status
from pipeline.insight.text import in_words, shortened
from pipeline.insight.timeline import Runs, over_time, seconds_of
from pipeline.insight.trace_statistics import EXAMPLE_PARTS, TraceStatistics, count, examples
from pipeline.monitor.figures import bin_floor, clock, quantile
from pipeline.monitor.history import all_figures
from pipeline.output.early import EarlySummary, percent
from pipeline.output.ledger import Ledger
from pipeline.output.made_by import in_words as engine_in_words
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage

PAGES = Path(__file__).parent / "pages"
MEANINGS = {
    State.FINISHED: "thought and answered",
    State.RESCUED: "answered after its thinking was closed for it",
    State.UNPARSED: "answered, but not in the requested format",
    State.TRUNCATED: "ran out of tokens",
    State.LOOPED: "looped, without an answer",
    State.EMPTY: "ended its turn without an answer",
    State.FAILED: "was never generated",
}
MAX_TEXT_CHARACTERS, MAX_SETTING_CHARACTERS, MAX_PREVIEW_CHARACTERS = 24_000, 500, 120
MAX_ERRORS = 20
# How all reports begin, those of earlier versions too.
HEAD_BYTES = 4096
IS_REPORT = re.compile(
    rb"<!doctype html>.*default-src 'none'.*script-src 'sha256-[^']*'.*<title>Report: ", re.DOTALL
)


def write_page(url: str, target: str) -> None:
    """Write the report of the output at ``url`` to ``target``, a path or URL.

    An earlier report is replaced. Raises `OutputError` for any other file there, if it can't be
    written, and as `page`.
    """
    folder, _, name = target.rpartition("/")
    store, path = Storage(folder) if "://" in target else None, Path(target)
    try:
        if store is not None:
            before = store.read(name) if store.exists(name) else b""
        else:
            before = path.read_bytes() if path.is_file() else b""
        if before and not IS_REPORT.match(before[:HEAD_BYTES]):
            raise OutputError(
                f"{target} exists and is not a report of qwq-batch; move it, or choose another "
                "file with --to"
            )
        data = page(url).encode()
        if store is not None:
            store.put(name, data)
        else:
            path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"can't write {target}: {error.strerror}") from None


def page(url: str) -> str:
    """The report of the output at ``url`` as HTML; raises `OutputError` if it is no output."""
    store, now = Storage(url), status(url)
    parts = sorted(Ledger(store).listing().finished_parts())
    statistics, runs = count(store, parts), list(all_figures(store))
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
        written_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        running=now.is_running,
        tiles=list(_tiles(now, statistics, runs)),
        notes=list(_notes(now)),
        states=list(_states(statistics)),
        judged=bool(statistics.correct),
        lengths=list(_lengths(statistics)),
        time=over_time(runs),
        recoveries=list(_recoveries(statistics)),
        abandoned=_abandoned(statistics),
        early=None if now.summary.early is None else list(_early(now.summary.early)),
        early_warning=now.summary.early and now.summary.early.warning,
        errors=[(error, f"{n:,}") for error, n in statistics.errors.most_common(MAX_ERRORS)],
        cost=list(_cost(statistics, runs)),
        traces=traces,
        shown_states=sorted({trace["state"] for trace in traces}, key=list(State).index),
        sampled_from=f"{min(len(parts), EXAMPLE_PARTS):,} of {len(parts):,} finished parts",
        settings=[
            (name, shortened(str(value), MAX_SETTING_CHARACTERS))
            for name, value in now.settings.items()
        ],
        engines=[engine_in_words(engine) for engine in now.summary.engines],
    )


def _tiles(now: Status, statistics: TraceStatistics, runs: Runs) -> Iterator[tuple[str, str]]:
    yield f"{now.rows_durable:,}", f"rows durable, of {now.rows:,}"
    yield f"{statistics.traces:,}", "traces in finished parts"
    if statistics.traces:
        yield f"{statistics.good / statistics.traces:.1%}", "finished or rescued"
    yield in_words(statistics.output_tokens), "tokens of thinking and answers"
    hours, cost = _gpu_hours(runs), _total_cost(runs)
    if hours:
        yield f"{hours:,.2f}", "GPU-hours"
    if cost is not None:
        yield f"{cost:,.2f}", "cost"


def _notes(now: Status) -> Iterator[str]:
    if now.parts_done < now.parts:
        yield (
            f"{now.parts - now.parts_done:,} of {now.parts:,} parts are not finished. The figures "
            "below are of the finished ones."
        )
    for run_pass in now.open_passes:
        yield (
            f"Pass {run_pass.number} is not finished. Some of the traces below will be replaced or "
            "joined by others."
        )


def _states(statistics: TraceStatistics) -> Iterator[dict[str, Any]]:
    for state in State:
        if traces := statistics.states[state]:
            right, wrong = (statistics.correct[state, verdict] for verdict in (True, False))
            judged = right + wrong
            yield {
                "name": str(state),
                "count": traces,
                "traces": f"{traces:,}",
                "share": f"{traces / statistics.traces:.1%}",
                "right": f"{right / judged:.1%} of {judged:,}" if judged else "",
                "meaning": MEANINGS[state],
            }


def _lengths(statistics: TraceStatistics) -> Iterator[dict[str, Any]]:
    for name, bins in (("thinking", statistics.think), ("answer", statistics.answer)):
        if not bins:
            continue
        first, last = min(bins), max(bins)
        marks = (first, (first + last + 1) // 2, last + 1)
        yield {
            "title": f"{name}: traces by length in tokens (log scale)",
            "svg": histogram(bins, first, last),
            "marks": [f"{bin_floor(number):,.0f}" for number in marks],
            "quantiles": ", ".join(
                f"{share:.0%} up to {quantile(bins, share) or 0:,.0f}"
                for share in (0.5, 0.95, 0.99)
            ),
        }


def _recoveries(statistics: TraceStatistics) -> Iterator[dict[str, str]]:
    rows = [
        ("thinking closed: budget used up", _closed_by(statistics, ClosedBy.BUDGET)),
        ("thinking closed: looped", _closed_by(statistics, ClosedBy.LOOP)),
        ("thinking closed: its answer had settled", _closed_by(statistics, ClosedBy.EARLY_ANSWER)),
        ("restarted because it looped", statistics.restarted),
        ("generated again by qwq-batch retry", statistics.retried),
    ]
    for action, states in rows:
        if states:
            ended = ", ".join(f"{n:,} {state}" for state, n in states.most_common())
            yield {"action": action, "count": f"{states.total():,}", "ended": ended}


def _closed_by(statistics: TraceStatistics, reason: ClosedBy) -> Counter[str]:
    """Final states of the traces whose thinking was closed for ``reason``."""
    return Counter({state: n for (by, state), n in statistics.closed.items() if by == reason})


def _abandoned(statistics: TraceStatistics) -> str:
    wasted = statistics.tokens["wasted_tokens"]
    if not wasted:
        return ""
    share = wasted / (statistics.output_tokens + wasted)
    return f"Abandoned attempts took {wasted:,} tokens, {share:.1%} of all."


def _early(early: EarlySummary) -> Iterator[tuple[str, str]]:
    of = early.counts
    yield "traces closed early", f"{of['closed']:,}"
    yield "tokens of probes", f"{of['probe_tokens']:,}, {early.probe_share:.1%} of all generated"
    yield "traces of the control group, which think to their end", f"{of['control_traces']:,}"
    if not early.is_enough:
        yield "what closing early saves and changes", early.too_few_text.strip()
        return
    yield "saved tokens of a trace, after the cost of probes", percent(early.saving, 0)
    compared = f"{of['agreeing']:,} of {of['compared']:,}, {percent(early.agreement, 1)}"
    yield "early answers that equal the full one", compared
    if judged := of["judged"]:
        for name, key in (("early", "early_right"), ("full", "full_right")):
            yield f"{name} answers that are right", f"{of[key]:,} of {judged:,}"
        yield "right answers that closing early makes wrong", f"{of['right_to_wrong']:,}"
        yield "wrong answers that closing early makes right", f"{of['wrong_to_right']:,}"


def _cost(statistics: TraceStatistics, runs: Runs) -> Iterator[tuple[str, str]]:
    tokens, hours, cost = statistics.tokens, _gpu_hours(runs), _total_cost(runs)
    yield "prompt tokens", f"{tokens['prompt_tokens']:,}"
    yield "tokens of thinking", f"{tokens['think_tokens']:,}"
    yield "tokens of answers", f"{tokens['answer_tokens']:,}"
    if tokens["carried_tokens"]:
        yield "of these, carried over from engines that ended", f"{tokens['carried_tokens']:,}"
    if tokens["wasted_tokens"]:
        yield "tokens of abandoned attempts", f"{tokens['wasted_tokens']:,}"
    if tokens["probe_tokens"]:
        yield "tokens of probes for early answers", f"{tokens['probe_tokens']:,}"
    if hours:
        yield "time with engines", clock(seconds_of(runs))
        yield "GPU-hours (CPU-process-hours on device cpu)", f"{hours:,.3f}"
    if cost is not None:
        yield "cost", f"{cost:,.2f}"
        if statistics.good:
            per_thousand = cost / statistics.good * 1000
            yield "cost per 1,000 finished or rescued traces", f"{per_thousand:,.2f}"


def _gpu_hours(runs: Runs) -> float:
    return sum(run[-1].engine_pool.gpu_hours(run[-1].paid_seconds) for run in runs)


def _total_cost(runs: Runs) -> float | None:
    costs = [run[-1].engine_pool.cost(run[-1].paid_seconds) for run in runs]
    return sum(cost for cost in costs if cost is not None) if any(costs) else None


def _trace(part: str, trace: Mapping[str, Any]) -> dict[str, Any]:
    """One trace as the template shows it, its texts shortened."""
    tokens = {kind: trace[f"{kind}_tokens"] or 0 for kind in ("prompt", "think", "answer")}
    inputs = [(name, _text(value)) for name, value in trace["input"].items()]
    answer = _text(trace["answer"] or "")
    return {
        "state": trace["state"],
        "tokens": " · ".join(f"{number:,} {kind}" for kind, number in tokens.items()),
        "think_tokens": f"{tokens['think']:,}",
        "preview": shortened(_prompt(inputs), MAX_PREVIEW_CHARACTERS),
        "details": ", ".join(_details(part, trace)),
        "input": inputs,
        "error": trace["error"],
        "think": _text(trace["think"] or ""),
        "answer": answer,
        "rendered": rendered(answer),
        "raw": _text(trace.get("raw") or ""),
    }


def _details(part: str, trace: Mapping[str, Any]) -> Iterator[str]:
    yield f"{part}, sample {trace['sample']}"
    yield f"seed {trace['seed']}"
    if trace["finish_reason"]:
        yield f"finish_reason {trace['finish_reason']}"
    for name in (
        "closed_by", "control", "early_answer", "parsed", "correct", "vote", "duplicate_of",
        "attempt", "loop_retries",
    ):  # fmt: skip
        value = trace.get(name)
        if value or value is False:
            yield f"{name} {shortened(str(value), MAX_PREVIEW_CHARACTERS)}"


def _prompt(inputs: Sequence[tuple[str, str]]) -> str:
    """The prompt on one line; the first column if no column has a usual name."""
    prompt = next((text for name, text in inputs if name in ("prompt", "messages")), "")
    return " ".join((prompt or next((text for _, text in inputs), "")).split())


def _text(value: Any) -> str:
    return shortened(value if isinstance(value, str) else repr(value), MAX_TEXT_CHARACTERS)
