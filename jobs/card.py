"""The dataset card of an export (its README.md, as Hugging Face reads it); no I/O."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.accept import ALWAYS, AT_TIMES, NEVER, SampleCounts
from jobs.chats import VARIANTS
from jobs.export import CONFIGS, JSONL, PREFERENCE, RL, Exported, Kept
from jobs.markdown import literal, table_lines
from jobs.splits import SPLITS, TRAIN, VALIDATION
from pipeline.output.made_by import EngineMark, in_words
from pipeline.planning import Pass

UNKNOWN = "unknown: fill in"
# Hugging Face's size categories, each with the number of rows below which it applies.
SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"),
)  # fmt: skip
CONFIG_MEANINGS = {
    "thinking": "the last turn is `<think>…</think>` and the answer",
    "answers": "the last turn is the answer alone",
    PREFERENCE: "pairs from the same prompt: `chosen` is better than `rejected`, `pair` says how",
    RL: "prompts with a reference (`solution`) and the share of right samples (`pass_rate`)",
}
REASON_MEANINGS = {
    "contaminated": "the prompt has a question of a benchmark",
    "state": "did not end by itself with an answer",
    "wrong": "the answer differs from the reference",
    "verifier_error": "the verifier failed",
    "verifier": "the verifier says no",
    "disagrees": "too few samples of the prompt agree, or this one differs from the majority",
    "unjudged": "nobody has judged it",
    "judge": "a required value is missing, or not as required",
    "too_hard": "fewer samples of the prompt are right than the lower bound of the pass rate",
    "too_easy": "more samples of the prompt are right than the upper bound of the pass rate",
    "too_short": "shorter than the limit",
    "too_long": "longer than the limit",
    "duplicate": "nearly the same thinking and answer as an accepted sample of the same prompt",
}
RULES = (
    "rescued", "min_agreement", "pass_rate", "verifier", "require", "min_tokens", "max_tokens",
    "benchmarks", "near_duplicate", "preference", "validation",
)  # fmt: skip
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
SECTIONS = ("model", "prompt", "sampling", "thinking", "answer")


@dataclass(frozen=True)
class Provenance:
    """What made the data: the run's settings by key, its engines, and finished retries."""

    settings: Mapping[str, Any]
    engines: Sequence[EngineMark]
    retries: Sequence[Pass] = ()


def dataset_info(exported: Exported) -> str:
    """``dataset_info.json`` for LLaMA-Factory, with the export's folder as ``dataset_dir``.

    The validation split is a data set of its own, with that word at the end of its name.
    """
    entries = dict[str, dict[str, Any]]()
    for config, split in sorted(exported.rows, key=lambda key: (CONFIGS.index(key[0]), key[1])):
        if config == RL:
            continue
        name = f"synthetic_{config}" + (f"_{split}" if split == VALIDATION else "")
        entries[name] = {"file_name": Kept(config, split, False).folder, "formatting": "sharegpt"}
        columns = {"messages": "messages"}
        if config == PREFERENCE:
            entries[name]["ranking"] = True
            columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
        entries[name] |= {"columns": columns, "tags": TAGS}
    return json.dumps(entries, indent=2)


def card(
    counts: SampleCounts, exported: Exported, provenance: Provenance, section: Mapping[str, Any]
) -> str:
    """The dataset card. ``section``: the values of the job's section ``synthesize``."""
    head = {
        "license": section["license"] or "unknown",
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "reasoning"],
        "size_categories": [size_category(exported.chats)],
        "configs": [_config(config, exported) for config in CONFIGS if exported.total(config)],
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    body = [
        *_content_lines(exported, provenance.settings, section),
        *_selection_lines(counts, section),
        *provenance_lines(provenance),
    ]
    return f"---\n{front}---\n" + "\n".join(body) + "\n"


def size_category(rows: int) -> str:
    """The size category of so many rows."""
    return next((name for below, name in SIZES if rows < below), "n>100M")


def _config(config: str, exported: Exported) -> dict[str, Any]:
    files = [
        {"split": split, "path": f"{config}/{split}-*.parquet"}
        for split in SPLITS
        if exported.rows[config, split]
    ]
    is_default = {"default": True} if config == VARIANTS[0] else {}
    return {"config_name": config, **is_default, "data_files": files}


def in_bytes(size: int) -> str:
    """A size as a person reads it, such as 1.5 MB."""
    for unit, unit_bytes in (("GB", 10**9), ("MB", 10**6)):
        if size >= unit_bytes:
            return f"{size / unit_bytes:,.1f} {unit}"
    return f"{size / 1000:,.1f} kB"


def _content_lines(
    exported: Exported, settings: Mapping[str, Any], section: Mapping[str, Any]
) -> Iterator[str]:
    revision = settings["model.revision"]
    written_by = settings["model.path"] + (f" (revision {revision})" if revision else "")
    yield from ("# Synthetic reasoning data", "")
    yield (
        f"{exported.chats:,} conversations, written by {literal(written_by)}. Each has the turns "
        "that the model was given, including any system turn and suffix. Its own turn is the last."
    )
    yield ""
    rows = []
    for config in CONFIGS:
        if not exported.total(config):
            continue
        counts = [f"{exported.rows[config, split]:,}" for split in SPLITS]
        folders = [config] if config == RL else [config, f"{config}{JSONL}"]
        files = [f"`{name}/`, {in_bytes(exported.sizes[name])}" for name in folders]
        files += [""] * (2 - len(files))
        rows.append([f"`{config}`", CONFIG_MEANINGS[config], *counts, *files])
    yield from table_lines(["config", "", TRAIN, VALIDATION, "Parquet", "JSON lines"], rows)
    yield from ("", f"- License: {section['license'] or UNKNOWN}")
    yield f"- Source of the prompts: {section['source'] or UNKNOWN}"


def _selection_lines(counts: SampleCounts, section: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## How it was chosen", "")
    yield (
        f"{counts.samples:,} samples of {counts.rows:,} prompts were drawn, and "
        f"{counts.accepted:,} accepted. "
        + (
            "All samples with a complete answer are here, accepted or not."
            if section["export"] == "all"
            else "The accepted ones are here."
        )
    )
    yield ""
    rejected = [
        [f"{count:,}", f"`{reason}`: {REASON_MEANINGS[reason]}"]
        for reason, count in counts.rejected.most_common()
    ]
    yield from table_lines(["samples", ""], [[f"{counts.accepted:,}", "accepted"], *rejected])
    states = ", ".join(f"{count:,} {state}" for state, count in counts.states.most_common())
    yield from ("", f"- Final states of the traces: {states}")
    if counts.pass_rates:
        rates = (f"{counts.pass_rates[name]:,} {name}" for name in (ALWAYS, AT_TIMES, NEVER))
        yield f"- Prompts whose samples are right: {', '.join(rates)}"
    if counts.left_out:
        yield f"- Prompts left out for a question of a benchmark: {len(counts.left_out):,}"
    yield (
        f"- Tokens generated: {counts.think_tokens:,} thinking, {counts.answer_tokens:,} answers, "
        f"{counts.wasted_tokens:,} in abandoned attempts"
        + (f", {counts.probe_tokens:,} in probes for early answers" if counts.probe_tokens else "")
    )
    yield f"- Rules: {_settings({name: section[name] for name in RULES})}"


def provenance_lines(provenance: Provenance) -> Iterator[str]:
    """What made the data: settings, retries and engines."""
    yield from ("", "## What made it", "")
    for section in SECTIONS:
        values = {
            key.removeprefix(f"{section}."): value
            for key, value in provenance.settings.items()
            if key.startswith(section)
        }
        yield f"- {section}: {_settings(values)}"
    for run_pass in provenance.retries:
        yield (
            f"- retry {run_pass.number} of traces that ended {', '.join(run_pass.states)}: "
            f"{_settings(dict(run_pass.changed)) or 'with the same settings'}"
        )
    for engine in provenance.engines:
        yield f"- engine: {literal(in_words(engine))}"


def _settings(values: Mapping[str, Any]) -> str:
    """Settings on one line, without those that are off (None or empty)."""
    are_on = {key: value for key, value in values.items() if value not in (None, {}, [], ())}
    return ", ".join(
        f"`{k}` {literal(json.dumps(v, ensure_ascii=False))}" for k, v in are_on.items()
    )
