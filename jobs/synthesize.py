"""Make training data: prompts from seeds, verified samples, chats to train on.

    qwq-batch synthesize configs/synthesize.yaml
    qwq-batch synthesize configs/synthesize.yaml --retry truncated
    python -m jobs.synthesize configs/synthesize.yaml        # the same as the first

Below ``output.path``: ``prompts`` (made from the seeds, if they are expanded, a number of accepted
samples is set or benchmarks are named), ``traces`` (the run's output), ``samples`` (all of them,
each accepted or rejected with a reason) and ``export`` (chats, preference pairs and prompts for
reinforcement learning, with a dataset card).
"""

import math
import sys
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.accept import UNJUDGED, SampleCounts
from jobs.card import Provenance, card, dataset_info
from jobs.chats import VARIANTS
from jobs.contamination import Benchmarks, prompt_text
from jobs.export import FOLDER as EXPORT
from jobs.export import FOLDERS, JSONL, Exported, export
from jobs.job import TRACES, Outcome, StageKind, generate, outcome
from jobs.judgements import Judgements
from jobs.own_files import OwnFiles
from jobs.push import push_and_report
from jobs.samples import FOLDER as SAMPLES_FOLDER
from jobs.samples import Checks, Samples
from jobs.seeds import PromptShards
from jobs.synthesize_config import NEED_PROMPTS, Synthesis
from jobs.synthesize_report import report_lines
from jobs.verifiers import load_verifier
from pipeline import console
from pipeline.errors import ConfigError, IncompleteRunError, InputError, OutputError
from pipeline.execution.prepare import PreparedRun, prepare, refuse_output_in_input
from pipeline.monitor.limits import Limits
from pipeline.output import passes
from pipeline.output.manifest import RETRY_MAY_CHANGE
from pipeline.output.parts import SAMPLES
from pipeline.output.summary import recorded_summary
from pipeline.printing import print_text
from pipeline.prompts.columns import prompt_columns
from pipeline.prompts.render import TableRow
from pipeline.storage import Storage, check_reachable

CARD, DATASET_INFO = f"{EXPORT}/README.md", f"{EXPORT}/dataset_info.json"
# A round generates this many times what the acceptance rate asks for, so that no round of a few
# rows has to follow.
MARGIN = 1.1


def synthesize(config: Synthesis, retry: Sequence[str] = ()) -> int:
    """Generate until enough is accepted, export anew, and print the result; the exit code.

    ``retry``: redo only the traces that ended in these states. Raises `IncompleteRunError` if
    nothing, or less than the target, is accepted.
    """
    own, files = _own_files(config), config.synthesize.benchmarks
    benchmarks = Benchmarks.load(files) if files else None
    makes_prompts, run = config.makes_prompts, config.run
    shards = _prompt_shards(config, benchmarks, bool(retry)) if makes_prompts else None
    prepared = prepare(run, RETRY_MAY_CHANGE if retry else ())
    samples = Samples(prepared, own, _checks(config, prepared, benchmarks))
    own.claim(())  # from now on, what somebody puts there is not taken for an earlier version's
    wanted, limits = _first_round(config, shards), Limits(run)
    console.warn_about(run)
    while True:
        if shards is not None and wanted > 0 and not retry:
            shards.write(wanted)
        summary = generate(run, retry, limits)
        samples.add_new()
        wanted = _next_round(config, shards, samples.counts)
        if retry or wanted == 0:
            break
        print_text(
            f"\n{samples.counts.accepted:,} of {config.synthesize.accepted:,} rows are accepted: "
            f"some {wanted:,} more prompts"
        )
    samples.counts.left_out = [] if shards is None else shards.contaminated
    exported = _export(config, prepared, samples, own)
    console.print_lines(
        report_lines(config.below(SAMPLES_FOLDER), config.below(EXPORT), samples.counts, exported)
    )
    _require_enough(config, samples.counts, bool(retry))
    console.refuse_all_failed(summary, run)
    if config.synthesize.push_to is not None and not exported.is_empty:
        push_and_report(config.below(EXPORT), config.synthesize.push_to)
    return 0


def _own_files(config: Synthesis) -> OwnFiles:
    """What the job writes beside its traces and prompts; raises `OutputError` for other files."""
    for url in (config.input.path, config.output.path):
        check_reachable(url)
    config.check_output()
    refuse_output_in_input(config, Storage(config.output.path))
    places = (
        f"{SAMPLES_FOLDER}/", *(f"{EXPORT}/{folder}/" for folder in FOLDERS), CARD, DATASET_INFO
    )  # fmt: skip
    exported = rf"{EXPORT}/({'|'.join(VARIANTS)})({JSONL})?/train-\d+\.(parquet|jsonl)"
    before = rf"{SAMPLES_FOLDER}/.*\.\d+\.parquet|{exported}|{CARD}|{DATASET_INFO}"
    own = OwnFiles(config.output.path, config.traces, places, before)
    own.refuse_others()
    return own


def _checks(config: Synthesis, run: PreparedRun, benchmarks: Benchmarks | None) -> Checks:
    section = config.synthesize
    verify = None if section.verifier is None else load_verifier(section.verifier)
    judgements = None
    if section.require:
        judgements = Judgements(section.require, section.judged, run)
    return Checks(section.rules, benchmarks, verify, judgements)


def _prompt_shards(
    config: Synthesis, benchmarks: Benchmarks | None, is_retry: bool
) -> PromptShards:
    """The shards of prompts made from the seeds, at least one written."""
    section, n = config.synthesize, config.sampling.n

    def find(prompts: pa.Table) -> list[str | None]:
        if benchmarks is None:
            return [None] * prompts.num_rows
        columns = prompt_columns(prompts.schema, config.prompt_columns)
        rows = (TableRow(prompts, i) for i in range(prompts.num_rows))
        return [benchmarks.find(prompt_text(row, columns)) for row in rows]

    rows_per_part = config.output.rows_per_part
    shards = PromptShards(config.input, config.output.path, section.expand, rows_per_part, find)
    if section.accepted is not None and section.accepted > shards.rows * n:
        raise ConfigError(
            f"synthesize.accepted is {section.accepted:,}, but {shards.rows:,} prompts with "
            f"sampling.n={n} make {shards.rows * n:,} samples; raise sampling.n, or add seeds"
        )
    if is_retry and not shards.rows_written:
        raise OutputError(f"{config.output.path} holds no run; there is nothing to retry")
    if not shards.rows_kept and not shards.write(1):
        raise InputError(
            f"all {shards.rows:,} prompts have questions of synthesize.benchmarks, such as "
            f"{shards.contaminated[0]}; there is nothing to generate"
        )
    return shards


def _first_round(config: Synthesis, shards: PromptShards | None) -> int:
    """How many more prompts are needed if all samples are accepted."""
    if shards is None:
        return 0
    target = config.synthesize.accepted
    if target is None:
        return shards.rows - shards.rows_written
    return math.ceil(target / config.sampling.n) - shards.rows_kept


def _next_round(config: Synthesis, shards: PromptShards | None, tally: SampleCounts) -> int:
    """How many more prompts the rate so far asks for; 0 if enough is accepted or no seed left."""
    target = config.synthesize.accepted
    if shards is None or target is None or tally.accepted >= target:
        return 0
    left = shards.rows - shards.rows_written
    if tally.rejected[UNJUDGED]:
        return 0  # further samples would wait for the judge too
    if not tally.accepted and tally.samples >= target:
        return 0  # nothing is accepted: more rounds would only use up the seeds
    if not tally.accepted:
        return min(left, tally.rows)
    rate = tally.accepted / tally.rows
    return min(left, math.ceil(MARGIN * (target - tally.accepted) / rate))


def _export(config: Synthesis, prepared: PreparedRun, samples: Samples, own: OwnFiles) -> Exported:
    """Write the export, its card last; without conversations there is none. Remove the outdated.

    With ``export: none`` an export that is there stays: that of a later stage, say.
    """
    section, store = config.synthesize, Storage(config.output.path)
    if section.export == "none":
        own.remove_all_but(samples.files, f"{SAMPLES_FOLDER}/")
        return Exported()
    exported = export(samples, prepared, own, section.export_rules)
    about = set[str]() if exported.is_empty else {CARD, DATASET_INFO}
    own.claim(about)
    own.remove_all_but(samples.files | exported.files | about)
    if exported.is_empty:
        return exported
    manifest = prepared.ledger.manifest()
    assert manifest is not None
    settings = {**manifest["settings"], SAMPLES: passes.samples_per_row(prepared.ledger)}
    known = prepared.ledger.passes(prepared.ledger.listing())
    retries = [run_pass for run_pass in known if run_pass.is_retry]
    made_by = Provenance(settings, recorded_summary(prepared.ledger).engines, retries)
    text = card(samples.counts, exported, made_by, section.model_dump())
    store.put(DATASET_INFO, dataset_info(exported).encode())
    store.put(CARD, text.encode())
    return exported


def _require_enough(config: Synthesis, tally: SampleCounts, retried: bool) -> None:
    target, where = config.synthesize.accepted, config.below(SAMPLES_FOLDER)
    if tally.rejected[UNJUDGED] and (not tally.accepted or (target or 0) > tally.accepted):
        raise IncompleteRunError(
            f"{tally.accepted:,} samples are accepted, and {tally.rejected[UNJUDGED]:,} are not in "
            f"synthesize.judged {config.synthesize.judged} yet; run the judge over "
            f"{config.traces}, then this command again"
        )
    if target is not None and tally.accepted < target:
        raise IncompleteRunError(
            f"{tally.accepted:,} of {target:,} rows are accepted; "
            + (
                "run the command without --retry to go on"
                if retried
                else f"all {tally.rows:,} prompts are done: raise sampling.n (existing samples "
                f"stay), add seeds, or see in {where} why samples are rejected"
            )
        )
    if not tally.accepted:
        raise IncompleteRunError(f"no sample is accepted; the column rejected in {where} says why")


def _outcome(config: Synthesis) -> Outcome:
    """Its results are the accepted samples."""
    store = Storage(config.below(SAMPLES_FOLDER))
    accepted = 0
    for info in store.files():
        with store.open(info.name) as file:
            accepted += pc.sum(pq.read_table(file, columns=["accepted"])["accepted"]).as_py() or 0
    return outcome(config)._replace(results=accepted)


def _check(config: Synthesis, first: Synthesis | None, reads_run: bool) -> None:
    """Refuse as a stage what its turn would; ``first``: the stage that it resumes."""
    section = config.synthesize
    if section.benchmarks:
        Benchmarks.load(section.benchmarks)
    copied = [name for name in NEED_PROMPTS if getattr(section, name)]
    if reads_run and (copied or section.benchmarks):
        raise ConfigError(
            f"synthesize.{(*copied, 'benchmarks')[0]} makes prompts from seeds, which must be "
            "files of your own, and input.path is a stage: leave it out"
        )
    if first is not None and copied and not first.makes_prompts:
        raise ConfigError(
            f"synthesize.{copied[0]} can't be added by a stage that resumes another, which reads "
            "all seeds: set it in that one"
        )


# Later stages read the traces: samples are decided anew by each command, and so they change.
STAGE = StageKind(Synthesis, synthesize, f"{TRACES}/", _outcome, _check)

if __name__ == "__main__":
    from pipeline.cli import main

    main(["synthesize", *sys.argv[1:]])
