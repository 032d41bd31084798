"""Make training data: prompts from seeds, verified samples, chats to train on.

    qwq-batch synthesize configs/synthesize.yaml
    qwq-batch synthesize configs/synthesize.yaml --retry truncated
    python -m jobs.synthesize configs/synthesize.yaml        # the same as the first

Below ``output.path``: ``prompts`` (made from the seeds, if they are expanded or a number of
accepted samples is set), ``traces`` (the run's output), ``samples`` (all of them, each accepted or
rejected with a reason) and ``export`` (chats to train on, with a dataset card).
"""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.accept import FOLDER as SAMPLES_FOLDER
from jobs.accept import REASONS, AcceptanceRules, SampleCounts, Samples
from jobs.card import Provenance, card, dataset_info, in_bytes
from jobs.chats import FOLDER as EXPORT
from jobs.chats import FOLDERS, Exported, export
from jobs.job import Job, generate
from jobs.own_files import OwnFiles
from jobs.seeds import PromptShards
from pipeline import RunConfig, console
from pipeline.answers.formats import parsed_formats
from pipeline.config.section import Section
from pipeline.errors import ConfigError, IncompleteRunError, OutputError
from pipeline.execution.prepare import PreparedRun, prepare, refuse_output_in_input
from pipeline.monitor.limits import Limits
from pipeline.output import passes
from pipeline.output.manifest import RETRY_MAY_CHANGE
from pipeline.output.parts import SAMPLES
from pipeline.printing import print_text
from pipeline.prompts.template import columns_of
from pipeline.storage import Storage, check_reachable

PROMPTS = "prompts"
CARD, DATASET_INFO = f"{EXPORT}/README.md", f"{EXPORT}/dataset_info.json"
# A round generates this many times what the acceptance rate asks for, so that no round of a few
# rows has to follow.
MARGIN = 1.1
SHOWN_CHARACTERS = 600
KINDS = ((str,), (int,), (float,))


class SynthesizeSection(Section):
    """How to expand the seeds, which samples to accept, and what the card says."""

    expand: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="columns to add: each seed with each combination of their values",
    )
    accepted: Annotated[int, Field(ge=1)] | None = Field(
        None, description="stop when so many samples are accepted; None: use all seeds"
    )
    rescued: bool = Field(
        False,
        description="also accept samples whose thinking was closed for them, or whose answer was "
        "asked for once more",
    )
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="without a right answer: accept an answer with this share of a row's samples",
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="accept samples up to so many tokens: prompt, thinking and answer"
    )
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.8, description="similarity (0 to 1) from which a sample is a duplicate; None: no check"
    )
    export: Literal["accepted", "all"] = Field(
        "accepted", description="all: every sample with a whole answer, accepted or not"
    )
    license: str | None = Field(None, description="license of the data, for the card")
    source: str | None = Field(None, description="origin and license of the seeds, for the card")

    @field_validator("expand")
    @classmethod
    def _has_values(cls, expand: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in expand.items():
            if not values:
                raise ValueError(f"{name} has no values, so there would be no prompts")
            if not any(all(type(value) in kind for value in values) for kind in KINDS):
                raise ValueError(
                    f"{name} must be all text, all whole numbers or all decimal numbers (put "
                    "quotes around yes, no, on, off and dates)"
                )
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        return expand

    @property
    def rules(self) -> AcceptanceRules:
        """What is accepted."""
        return AcceptanceRules(
            self.rescued, self.min_agreement, self.max_tokens, self.near_duplicate
        )


class Synthesis(Job):
    """The job's configuration."""

    synthesize: SynthesizeSection = SynthesizeSection()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        used = columns_of(self.prompt.template or "")
        if unused := [name for name in self.synthesize.expand if name not in used]:
            raise ValueError(
                f"synthesize.expand has {', '.join(unused)}, which prompt.template does not use, "
                "so all its values would give the same prompt"
            )
        is_parsed = self.answer.load_format().is_parsed
        if self.synthesize.min_agreement is not None and not is_parsed:
            raise ValueError(f"synthesize.min_agreement needs an answer.format: {parsed_formats()}")
        return self

    @property
    def makes_prompts(self) -> bool:
        """Whether the run reads prompt shards made from the seeds, instead of the seeds."""
        return bool(self.synthesize.expand) or self.synthesize.accepted is not None

    @property
    def run(self) -> RunConfig:
        """The run that generates the samples."""
        if not self.makes_prompts:
            return self.as_run()
        taken = dict.fromkeys(("columns", "where"), None)  # of the seeds, not once more
        return self.as_run(input={"path": self.below(PROMPTS), **taken})


def synthesize(config: Synthesis, retry: Sequence[str] = ()) -> int:
    """Generate until enough is accepted, export anew, and print the result; the exit code.

    ``retry``: redo only the traces that ended in these states. Raises `IncompleteRunError` if
    nothing, or less than the target, is accepted.
    """
    run, own = config.run, _own_files(config)
    shards = _prompt_shards(config, retry)
    prepared = prepare(run, RETRY_MAY_CHANGE if retry else ())
    samples = Samples(prepared, own, config.synthesize.rules)
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
    exported = _export(config, prepared, samples, own)
    console.print_lines(report_lines(config, samples.counts, exported))
    _require_enough(config, samples.counts, bool(retry))
    console.refuse_all_failed(summary, run)
    return 0


def _own_files(config: Synthesis) -> OwnFiles:
    """What the job writes beside its traces and prompts; raises `OutputError` for other files."""
    for url in (config.input.path, config.output.path):
        check_reachable(url)
    config.check_output()
    refuse_output_in_input(config, Storage(config.output.path))
    folders = [f"{EXPORT}/{folder}/" for folder, _ in FOLDERS]
    places = (f"{SAMPLES_FOLDER}/", *folders, CARD, DATASET_INFO)
    exported = rf"({'|'.join(folders)})train-\d+\.(parquet|jsonl)"
    before = rf"{SAMPLES_FOLDER}/.*\.\d+\.parquet|{exported}|{CARD}|{DATASET_INFO}"
    own = OwnFiles(config.output.path, config.traces, places, before)
    own.refuse_others()
    return own


def _prompt_shards(config: Synthesis, retry: Sequence[str]) -> PromptShards | None:
    """The shards of prompts made from the seeds, at least one written; None if there are none."""
    section, n = config.synthesize, config.sampling.n
    if not config.makes_prompts:
        return None
    rows = config.output.rows_per_part
    shards = PromptShards(config.input, config.below(PROMPTS), section.expand, rows)
    if section.accepted is not None and section.accepted > shards.rows * n:
        raise ConfigError(
            f"synthesize.accepted is {section.accepted:,}, but {shards.rows:,} prompts with "
            f"sampling.n={n} make {shards.rows * n:,} samples; raise sampling.n, or add seeds"
        )
    if retry and not shards.rows_written:
        raise OutputError(f"{config.output.path} holds no run; there is nothing to retry")
    if not shards.rows_written:
        shards.write(1)
    return shards


def _first_round(config: Synthesis, shards: PromptShards | None) -> int:
    """How many more prompts are needed if all samples are accepted."""
    if shards is None:
        return 0
    target = config.synthesize.accepted
    needed = shards.rows if target is None else math.ceil(target / config.sampling.n)
    return needed - shards.rows_written


def _next_round(config: Synthesis, shards: PromptShards | None, tally: SampleCounts) -> int:
    """How many more prompts the rate so far asks for; 0 if enough is accepted or no seed left."""
    target = config.synthesize.accepted
    if shards is None or target is None or tally.accepted >= target:
        return 0
    left = shards.rows - shards.rows_written
    if not tally.accepted and tally.samples >= target:
        return 0  # nothing is accepted: more rounds would only use up the seeds
    if not tally.accepted:
        return min(left, tally.rows)
    rate = tally.accepted / tally.rows
    return min(left, math.ceil(MARGIN * (target - tally.accepted) / rate))


def _export(config: Synthesis, prepared: PreparedRun, samples: Samples, own: OwnFiles) -> Exported:
    """Write the export, its card last; without conversations there is none. Remove the outdated."""
    section, store = config.synthesize, Storage(config.output.path)
    exported = export(samples, prepared, own, section.export == "all")
    about = {CARD, DATASET_INFO} if exported.rows else set[str]()
    own.claim(about)
    own.remove_all_but(samples.files | exported.files | about)
    if not exported.rows:
        return exported
    manifest = prepared.ledger.manifest()
    assert manifest is not None
    settings = {**manifest["settings"], SAMPLES: passes.samples_per_row(prepared.ledger)}
    known = prepared.ledger.passes(prepared.ledger.listing())
    retries = [run_pass for run_pass in known if run_pass.is_retry]
    made_by = Provenance(settings, manifest["versions"], retries)
    text = card(samples.counts, exported, made_by, section.model_dump())
    store.put(DATASET_INFO, dataset_info().encode())
    store.put(CARD, text.encode())
    return exported


def report_lines(config: Synthesis, tally: SampleCounts, exported: Exported) -> Iterator[str]:
    """The result as text, with one conversation as an example."""
    yield f"\n{tally.samples:,} samples of {tally.rows:,} prompts in {config.below(SAMPLES_FOLDER)}"
    counts = [("accepted", tally.accepted)]
    counts += [(reason, tally.rejected[reason]) for reason in REASONS if tally.rejected[reason]]
    for name, count in counts:
        yield f"  {name:<10} {count:>9,} samples  {count / max(1, tally.samples):>6.1%}"
    yield f"  {'tokens':<10} {tally.tokens:>9,} generated" + (
        f", {tally.tokens / tally.accepted:,.0f} for each accepted one" if tally.accepted else ""
    )
    if not exported.rows:
        return
    yield f"{exported.rows:,} conversations in {config.below(EXPORT)}, README.md says what they are"
    for name, size in exported.sizes.items():
        yield f"  {name:<15} {in_bytes(size):>10}"
    assert exported.example is not None
    yield f"one of them, {exported.example['id']}:"
    for message in exported.example["messages"]:
        text = message["content"] or ""
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
        yield f"-- {message['role']}\n{shown}"


def _require_enough(config: Synthesis, tally: SampleCounts, retried: bool) -> None:
    target, where = config.synthesize.accepted, config.below(SAMPLES_FOLDER)
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


if __name__ == "__main__":
    from pipeline.cli import main

    main(["synthesize", *sys.argv[1:]])
