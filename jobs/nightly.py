"""A scheduled run: run new rows within limits, and leave a report.

    qwq-batch nightly configs/nightly.yaml
    python -m jobs.nightly configs/nightly.yaml      # the same

Prompt shards may be added at any time; each run does the rows that no run has done. It ends in
order at the first of the config's ``limits`` and the time limit of its Slurm job
(``$SLURM_JOB_END_TIME``): running traces are saved, and the next run continues them. The config is
one of ``qwq-batch run``, and either command continues the other's output. A report of each run, as
text and as JSON, is written to ``__qwq/reports`` in the output. The exit code is 0 if all rows are
done or a limit was reached, and otherwise that of ``qwq-batch run``.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from jobs.markdown import literal
from pipeline import RunConfig, console
from pipeline.errors import IncompleteRunError, LimitReachedError, QwqBatchError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.monitor import terminal as progress
from pipeline.monitor.limits import Limits
from pipeline.output.layout import BOOKKEEPING
from pipeline.output.summary import summarize
from pipeline.printing import print_text
from pipeline.storage import Storage

# The script in infra/slurm signals its driver so long before the end of the Slurm job. A nightly
# run ends before that signal.
SLURM_NOTICE_SECONDS = 120
REPORTS = f"{BOOKKEEPING}/reports"


def seconds_left(environment: Mapping[str, str]) -> float | None:
    """Seconds until this has to end because of Slurm's time limit; None outside Slurm."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    return float(end) - time.time() - SLURM_NOTICE_SECONDS if end.isdecimal() else None


def run(config: RunConfig, limits: Limits) -> tuple[dict[str, Any], QwqBatchError | None]:
    """Run until the end or a limit; returns the report, and the error if the run failed."""
    begun = datetime.now(UTC)
    failure: QwqBatchError | None = None
    try:
        summary = flow.run(config, progress.watch, limits)
        ended_by, missing = "all is done", len(summary.missing_parts)
        if missing:
            raise IncompleteRunError(f"{missing} parts are not finished; run again to go on")
        console.refuse_all_failed(summary, config)
    except LimitReachedError as error:
        ended_by = str(error).partition(";")[0]
    except QwqBatchError as error:
        failure = error
    if failure is not None:
        ended_by = failure.message
    report = {"begun": begun.isoformat(timespec="seconds"), "ended_by": ended_by}
    try:
        report |= outcome(config, limits)
    except QwqBatchError as error:  # such as a shard that is just being copied
        report["output_unknown"] = error.message
    return report, failure


def outcome(config: RunConfig, limits: Limits) -> dict[str, Any]:
    """What this run did, and the progress of the whole output."""
    prepared, now = prepare(config), limits.totals
    rows, rows_todo = sum(part.rows for part in prepared.parts), prepared.plan.rows_todo
    store, policy = prepared.ledger.store, config.sampling
    summary = summarize(store, prepared.parts, policy.n, policy.agree, prepared.floor)
    cost = limits.cost
    return {
        "seconds": round(limits.seconds),
        "cost": None if cost is None else round(cost, 2),
        "this_run": {
            "rows": now.rows,
            "states": dict(now.states),
            "prompt_tokens": now.prompt_tokens,
            "generated_tokens": now.spent_tokens,
        },
        "output": {
            "path": config.output.path,
            "shards": len(prepared.shards),
            "rows": rows,
            "rows_done": rows - rows_todo,
            "files": len(prepared.parts) - len(summary.missing_parts),
            "files_to_come": len(summary.missing_parts),
            "states_in_files": dict(summary.states),
        },
    }


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report as Markdown."""
    yield f"# Run of {report['begun']}\n"
    yield f"ended: {literal(report['ended_by'])}"
    if "output" not in report:
        yield f"\nhow far the output is can't be told: {literal(report['output_unknown'])}"
        return
    now, whole = report["this_run"], report["output"]
    cost = "" if report["cost"] is None else f", cost {report['cost']:,}"
    yield f"time: {report['seconds']:,} s{cost}\n"
    yield "| | rows | tokens | states |"
    yield "|---|---|---|---|"
    yield (
        f"| this run | {now['rows']:,} | {now['prompt_tokens']:,} prompt, "
        f"{now['generated_tokens']:,} generated | {_states(now['states'])} |"
    )
    yield (
        f"| all so far | {whole['rows_done']:,} of {whole['rows']:,} of {whole['shards']:,} shards "
        f"| | {_states(whole['states_in_files'])} (in {whole['files']:,} files, "
        f"{whole['files_to_come']:,} to come) |"
    )


def _states(states: Mapping[str, int]) -> str:
    by_count = sorted(states.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{count:,} {state}" for state, count in by_count) or "none"


def nightly(config: RunConfig) -> int:
    """Run new rows within the limits, write the report and print it; the exit code."""
    limits = Limits(config, seconds_left(os.environ))
    report, failure = run(config, limits)
    text = "\n".join(report_lines(report)) + "\n"
    name, store = f"{REPORTS}/{report['begun'].replace(':', '')}", Storage(config.output.path)
    if failure is None or "output" in report:  # else there is no output, or it is another run's
        store.put(f"{name}.json", (json.dumps(report, indent=2) + "\n").encode())
        store.put(f"{name}.md", text.encode())
    if failure is not None:
        raise failure
    print_text(f"\n{text}\nin {config.output.path}: {name}.md, {name}.json")
    return 0


if __name__ == "__main__":
    from pipeline.cli import main

    main(["nightly", *sys.argv[1:]])
