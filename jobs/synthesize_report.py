"""What `jobs.synthesize` prints at its end; no I/O."""

from collections.abc import Iterator

from jobs.accept import ALWAYS, AT_TIMES, CONTAMINATED, NEVER, VERIFIER_ERROR, SampleCounts
from jobs.card import in_bytes
from jobs.export import PREFERENCE, RL, Exported
from jobs.splits import SPLITS, VALIDATION

SHOWN_CHARACTERS = 600


def report_lines(
    samples: str, export: str, counts: SampleCounts, exported: Exported
) -> Iterator[str]:
    """The result as text, with one conversation as an example.

    ``samples``, ``export``: where these are.
    """
    yield f"\n{counts.samples:,} samples of {counts.rows:,} prompts in {samples}"
    for name, count in counts.lines():
        yield f"  {name:<14} {count:>9,} samples  {count / max(1, counts.samples):>6.1%}"
    yield f"  {'tokens':<14} {counts.tokens:>9,} generated" + (
        f", {counts.tokens / counts.accepted:,.0f} for each accepted one" if counts.accepted else ""
    )
    yield from _remarks(counts)
    if exported.is_empty:
        return
    yield (
        f"{exported.chats:,} conversations, {exported.total(PREFERENCE):,} preference pairs and "
        f"{exported.total(RL):,} prompts for RL in {export}, README.md says what they are"
    )
    if any(exported.rows[config, VALIDATION] for config, _ in list(exported.rows)):
        for split in SPLITS:
            rows = {config: n for (config, of), n in sorted(exported.rows.items()) if of == split}
            yield f"  {split}: {', '.join(f'{n:,} {config}' for config, n in rows.items() if n)}"
    for name, size in exported.sizes.items():
        yield f"  {name:<27} {in_bytes(size):>10}"
    if exported.example is not None:
        yield f"one of them, {exported.example['id']}:"
        for message in exported.example["messages"]:
            text = message["content"] or ""
            shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
            yield f"-- {message['role']}\n{shown}"


def _remarks(counts: SampleCounts) -> Iterator[str]:
    if rates := counts.pass_rates:
        shown = (f"{rates[name]:,} {name}" for name in (ALWAYS, AT_TIMES, NEVER))
        yield f"  prompts whose samples are right: {', '.join(shown)}"
    if counts.left_out:
        yield (
            f"  {len(counts.left_out):,} more prompts were not generated: {CONTAMINATED}, such as "
            f"by {counts.left_out[0]}"
        )
    if counts.verifier_error is not None:
        yield (
            f"  the verifier failed for {counts.rejected[VERIFIER_ERROR]:,} samples, first for "
            f"{counts.verifier_error}"
        )
