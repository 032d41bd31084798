"""The README of an export, as Hugging Face reads it: what is in it, and what made it; no I/O."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from jobs.accept import Tally
from jobs.chats import JSONL, VARIANTS, Exported
from pipeline.planning import Pass

UNKNOWN = "unknown: fill in"
SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"),
)  # fmt: skip
ABOUT = {
    "thinking": "the last turn is `<think>…</think>` and the answer",
    "answers": "the last turn is the answer alone",
}
MEANING = {
    "state": "did not end by itself with an answer",
    "wrong": "the answer is not the reference",
    "disagrees": "too few samples of the prompt agree, or this one is not with them",
    "too_long": "longer than the set limit",
    "duplicate": "nearly the same thinking and answer to the same prompt as an accepted one",
}


def dataset_info() -> str:
    """LLaMA-Factory's description of the export, for a ``dataset_dir`` that is this folder."""
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
    tally: Tally,
    exported: Exported,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    retries: Iterable[Pass],
    rules: Mapping[str, Any],
) -> str:
    """The card. ``settings`` and ``versions``: the run's manifest; ``rules``: what was accepted.

    Rules are ``license``, ``source`` (None: to be filled in), ``export`` and those of acceptance.
    """
    head = {
        "license": rules["license"] or "unknown",
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
    body = _lines(tally, exported, settings, versions, retries, rules)
    return f"---\n{front}---\n" + "\n".join(body) + "\n"


def in_bytes(size: int) -> str:
    """A size as a person reads it, such as 1.5 MB."""
    for unit, of in (("GB", 10**9), ("MB", 10**6)):
        if size >= of:
            return f"{size / of:,.1f} {unit}"
    return f"{size / 1000:,.1f} kB"


def _lines(
    tally: Tally,
    exported: Exported,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    retries: Iterable[Pass],
    rules: Mapping[str, Any],
) -> Iterator[str]:
    yield from ("# Synthetic reasoning data", "")
    yield (
        f"{exported.rows:,} conversations, written by {settings['model.path']}"
        + (f" (revision {settings['model.revision']})" if settings["model.revision"] else "")
        + ", each with the turns that the model was given (any system turn and suffix too) and its "
        "own as the last."
    )
    yield from ("", "| config | | Parquet | JSON lines |", "|---|---|---|---|")
    for variant in VARIANTS:
        sizes = [exported.sizes.get(f"{variant}{kind}", 0) for kind in ("", JSONL)]
        yield (
            f"| `{variant}` | {ABOUT[variant]} | `{variant}/`, {in_bytes(sizes[0])} "
            f"| `{variant}{JSONL}/`, {in_bytes(sizes[1])} |"
        )
    yield from ("", f"- License: {rules['license'] or UNKNOWN}")
    yield f"- Source of the prompts: {rules['source'] or UNKNOWN}"
    yield from ("", "## How it was chosen", "")
    yield (
        f"{tally.samples:,} samples of {tally.rows:,} prompts were drawn, and {tally.accepted:,} "
        "accepted. "
        + (
            "All samples with a whole answer are here, accepted or not."
            if rules["export"] == "all"
            else "The accepted ones are here."
        )
    )
    yield from ("", "| samples | |", "|---|---|", f"| {tally.accepted:,} | accepted |")
    for reason, count in tally.rejected.most_common():
        yield f"| {count:,} | `{reason}`: {MEANING[reason]} |"
    states = ", ".join(f"{count:,} {state}" for state, count in tally.states.most_common())
    yield from ("", f"- States in which the traces ended: {states}")
    yield (
        f"- Tokens generated: {tally.think_tokens:,} thinking, {tally.answer_tokens:,} answers, "
        f"{tally.wasted_tokens:,} given up"
    )
    names = ("rescued", "min_agreement", "max_tokens", "near_duplicate")
    yield f"- Rules: {_said({name: rules[name] for name in names})}"
    yield from ("", "## What made it", "")
    for section in ("model", "prompt", "sampling", "thinking", "answer"):
        of = {
            k.removeprefix(f"{section}."): v for k, v in settings.items() if k.startswith(section)
        }
        yield f"- {section}: {_said(of)}"
    for run_pass in retries:
        yield (
            f"- retry {run_pass.number} of what had ended {', '.join(run_pass.states)}: "
            f"{_said(dict(run_pass.changed)) or 'with the same settings'}"
        )
    yield f"- software: {', '.join(f'{name} {version}' for name, version in versions.items())}"


def _said(values: Mapping[str, Any]) -> str:
    """Settings on one line, those that are off left out."""
    kept = {k: v for k, v in values.items() if v is not None}
    return ", ".join(f"`{k}` {json.dumps(v, ensure_ascii=False)}" for k, v in kept.items())
