"""The dataset card of an export (its README.md, as Hugging Face reads it); no I/O."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.accept import SampleCounts
from jobs.chats import JSONL, VARIANTS, Exported
from jobs.markdown import literal, table_lines
from pipeline.planning import Pass

UNKNOWN = "unknown: fill in"
# Hugging Face's size categories, each with the number of rows below which it applies.
SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"),
)  # fmt: skip
VARIANT_MEANINGS = {
    "thinking": "the last turn is `<think>…</think>` and the answer",
    "answers": "the last turn is the answer alone",
}
REASON_MEANINGS = {
    "state": "did not end by itself with an answer",
    "wrong": "the answer differs from the reference",
    "disagrees": "too few samples of the prompt agree, or this one differs from the majority",
    "too_long": "longer than the limit",
    "duplicate": "nearly the same thinking and answer as an accepted sample of the same prompt",
}
RULES = ("rescued", "min_agreement", "max_tokens", "near_duplicate")
SECTIONS = ("model", "prompt", "sampling", "thinking", "answer")


@dataclass(frozen=True)
class Provenance:
    """What made the data: the run's settings by key, software versions, and finished retries."""

    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    retries: Sequence[Pass] = ()


def dataset_info() -> str:
    """``dataset_info.json`` for LLaMA-Factory, with the export's folder as ``dataset_dir``."""
    return json.dumps(
        {
            f"synthetic_{variant}": {
                "file_name": f"{variant}{JSONL}",
                "formatting": "sharegpt",
                "columns": {"messages": "messages"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                    "system_tag": "system",
                },
            }
            for variant in VARIANTS
        },
        indent=2,
    )


def card(
    counts: SampleCounts, exported: Exported, provenance: Provenance, section: Mapping[str, Any]
) -> str:
    """The dataset card. ``section``: the values of the job's section ``synthesize``."""
    head = {
        "license": section["license"] or "unknown",
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "reasoning"],
        "size_categories": [next((s for n, s in SIZES if exported.rows < n), "n>100M")],
        "configs": [
            {
                "config_name": variant,
                **({"default": True} if variant == VARIANTS[0] else {}),
                "data_files": [{"split": "train", "path": f"{variant}/*.parquet"}],
            }
            for variant in VARIANTS
        ],
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    body = [
        *_content_lines(exported, provenance.settings, section),
        *_selection_lines(counts, section),
        *_provenance_lines(provenance),
    ]
    return f"---\n{front}---\n" + "\n".join(body) + "\n"


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
        f"{exported.rows:,} conversations, written by {literal(written_by)}. Each has the turns "
        "that the model was given, including any system turn and suffix. Its own turn is the last."
    )
    yield ""
    rows = []
    for variant in VARIANTS:
        parquet, jsonl = (in_bytes(exported.sizes.get(f"{variant}{k}", 0)) for k in ("", JSONL))
        files = f"`{variant}/`, {parquet}", f"`{variant}{JSONL}/`, {jsonl}"
        rows.append([f"`{variant}`", VARIANT_MEANINGS[variant], *files])
    yield from table_lines(["config", "", "Parquet", "JSON lines"], rows)
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
    yield (
        f"- Tokens generated: {counts.think_tokens:,} thinking, {counts.answer_tokens:,} answers, "
        f"{counts.wasted_tokens:,} in abandoned attempts"
        + (f", {counts.probe_tokens:,} in probes for early answers" if counts.probe_tokens else "")
    )
    yield f"- Rules: {_settings({name: section[name] for name in RULES})}"


def _provenance_lines(provenance: Provenance) -> Iterator[str]:
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
    versions = (f"{name} {version}" for name, version in provenance.versions.items())
    yield f"- software: {', '.join(versions)}"


def _settings(values: Mapping[str, Any]) -> str:
    """Settings on one line, without those that are off (None)."""
    are_on = {key: value for key, value in values.items() if value is not None}
    return ", ".join(
        f"`{k}` {literal(json.dumps(v, ensure_ascii=False))}" for k, v in are_on.items()
    )
