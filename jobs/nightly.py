"""A scheduled run: do what is new, within limits, and leave a report.

    python -m jobs.nightly configs/nightly.yaml

Prompt shards may be added at any time; a run does what has not been done. It ends in order, with
what was running saved, at the first of the config's ``limits`` and the time limit of its Slurm job
(``$SLURM_JOB_END_TIME``), and the next one goes on. The config is that of ``qwq-batch run``, whose
runs it goes on with; a report of each run, for people and for programs, is written beside the
output, in ``__qwq/reports``. Exit code 0 if all is done or a limit has been reached, otherwise that
of ``qwq-batch run``.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jobs.job import job_parser
from pipeline.cli import exit_with, warn
from pipeline.config.load import load_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import IncompleteRunError, LimitReachedError, QwqBatchError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.monitor import terminal as progress
from pipeline.monitor.limits import Limits, pool_of
from pipeline.output.layout import BOOKKEEPING
from pipeline.output.summary import Summary, summarize
from pipeline.storage import Storage

# infra/slurm's script has the driver told so long before the end of its job; that is for jobs that
# do not end by themselves.
SLURM_NOTICE_SECONDS = 120
REPORTS = f"{BOOKKEEPING}/reports"


def seconds_left(environment: Mapping[str, str]) -> float | None:
    """How long this may go on by Slurm's time limit; None outside Slurm."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    return float(end) - time.time() - SLURM_NOTICE_SECONDS if end.isdecimal() else None


def run(config: RunConfig, limits: Limits) -> tuple[dict[str, Any], QwqBatchError | None]:
    """Run until the end or a limit: what to report, and what went wrong if anything did."""
    begun = datetime.now(UTC)
    failure: QwqBatchError | None = None
    try:
        missing = len(flow.run(config, progress.watch, limits).missing_parts)
        ended_by = "all is done"
        if missing:
            failure = IncompleteRunError(f"{missing} parts are not finished; run again to go on")
    except LimitReachedError as error:
        ended_by = str(error).partition(";")[0]
    except QwqBatchError as error:
        failure = error
    if failure is not None:
        ended_by = failure.message
    report = {"begun": begun.isoformat(timespec="seconds"), "ended_by": ended_by}
    try:
        report |= outcome(config, limits)
    except QwqBatchError as error:  # such as a shard that is being copied just now
        report["output_unknown"] = error.message
    return report, failure


def outcome(config: RunConfig, limits: Limits) -> dict[str, Any]:
    """What this run did, and how far the whole output is."""
    job, now = prepare(config), limits.totals
    rows, left = sum(part.rows for part in job.parts), job.plan.rows_todo
    summary: Summary = summarize(
        job.ledger.store, job.parts, config.sampling.n, config.sampling.agree
    )
    cost = pool_of(config).cost(limits.seconds)
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
            "shards": len(job.shards),
            "rows": rows,
            "rows_done": rows - left,
            "files": len(job.parts) - len(summary.missing_parts),
            "files_to_come": len(summary.missing_parts),
            "states_in_files": dict(summary.states),
        },
    }


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report as Markdown."""
    yield f"# Run of {report['begun']}\n"
    yield f"ended: {report['ended_by']}"
    if "output" not in report:
        yield f"\nhow far the output is can't be told: {report['output_unknown']}"
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
    told = sorted(states.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{count:,} {state}" for state, count in told) or "none"


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is new, and report."""
    parser = job_parser("nightly", __doc__.split("\n")[0], retries=False)
    args = parser.parse_args(argv)
    exit_with(lambda: _nightly(load_config(args.config, args.overrides)))


def _nightly(config: RunConfig) -> int:
    warn(config)
    limits = Limits(config, seconds_left(os.environ))
    report, failure = run(config, limits)
    text = "\n".join(report_lines(report)) + "\n"
    name, store = f"{REPORTS}/{report['begun'].replace(':', '')}", Storage(config.output.path)
    if failure is None or "output" in report:  # otherwise there is none, or it is another's
        store.put(f"{name}.json", (json.dumps(report, indent=2) + "\n").encode())
        store.put(f"{name}.md", text.encode())
    if failure is not None:
        raise failure
    print(f"\n{text}\nin {config.output.path}: {name}.md, {name}.json")
    return 0


if __name__ == "__main__":
    main()
