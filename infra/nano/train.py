"""Train qwq-nano (or, from it, qwq-nano-preview) on generated tasks; two CPU cores are enough.

    python -m infra.nano.train qwq-nano --steps 3000
    python -m infra.nano.train qwq-nano-preview --init pipeline/models/qwq-nano --steps 500

Long thinking is learned from windows: the prompt, then a random piece of the thinking at its true
position. So training covers distances of thousands of tokens while rows stay short. Every twentieth
step uses whole rows of `LONG_TOKENS`.

Half of the rows have their thinking cut and closed with the pipeline's own phrase, at a random
point or before words of doubt. The model learns the answer after the phrase, but never the phrase
itself. In half of these rows the beginning of the answer is given too, as probes give it.
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from infra.nano import tasks
from infra.nano.checkpoint import build_config, build_tokenizer, think_tags, write_checkpoint
from infra.nano.closed import cut, divided, early_answer
from infra.nano.judging import judge_task
from infra.nano.tasks import Task, countdown_task, loop_task
from pipeline.reasoning.policy import closing_text
from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS

WINDOW_TOKENS = 320
LONG_TOKENS = 1536
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Token ids with positions and labels; the label is `IGNORED` where nothing is learned."""

    ids: list[int]
    positions: list[int]
    labels: list[int]


def response(task: Task, tagged: bool) -> str:
    """The text after the generation prompt, in QwQ's (``tagged``) or Preview's format."""
    if task.answer is None:
        return task.think
    close = "\n</think>\n\n" if tagged else "\n\n**Final Answer**\n\n"
    return f"{task.think}{close}{task.answer}<|im_end|>"


def encode(
    task: Task, tokenizer: PreTrainedTokenizerFast, tagged: bool
) -> tuple[list[int], list[int]]:
    """The token ids of the prompt and of the response."""
    messages = [{"role": "user", "content": task.prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(prompt), tokenizer.encode(response(task, tagged))


def window(prompt: list[int], reply: list[int], size: int, rng: random.Random) -> Row:
    """The prompt and at most ``size`` tokens of the reply, from its start, end or in between."""
    last = max(0, len(reply) - size)
    start = rng.choice([0, rng.randint(1, last), last]) if last else 0
    return stretch(prompt, reply, reply, start, size)


def stretch(prompt: list[int], reply: list[int], labels: list[int], start: int, size: int) -> Row:
    """The prompt and ``size`` tokens of the reply from ``start``, at their true positions."""
    piece, end = reply[start : start + size], len(prompt) + start
    blind = 16 if start else 0  # the first tokens of a piece from the middle can't be predicted
    return Row(
        ids=prompt + piece,
        positions=[*range(len(prompt)), *range(end, end + len(piece))],
        labels=[IGNORED] * (len(prompt) + blind) + labels[start + blind : start + size],
    )


def closed_early(
    task: Task, tokenizer: PreTrainedTokenizerFast, tagged: bool, size: int, rng: random.Random
) -> Row:
    """The thinking cut at some point, the closing phrase (`IGNORED`), and the answer."""
    think = cut(rng, task.think)
    prompt, _ = encode(task, tokenizer, tagged)
    thought = tokenizer.encode(think)
    closing = closing_text(THINK_TAGS if tagged else HEADINGS)
    text = early_answer(task, think)
    if rng.random() < 0.5:
        opening, text = divided(text)
        closing += opening
    given, answer = tokenizer.encode(closing), tokenizer.encode(text + "<|im_end|>")
    reply = [*thought, *given, *answer]
    labels = [*thought, *[IGNORED] * len(given), *answer]
    return stretch(prompt, reply, labels, max(0, len(reply) - size), size)


# Weights of the tasks in the mixture.
MAKERS: tuple[tuple[Callable[[random.Random], Task], int], ...] = (
    (tasks.count_task, 14), (tasks.add_task, 50), (tasks.choice_task, 60), (tasks.pick_task, 10),
    (tasks.json_task, 22), (tasks.label_task, 26), (judge_task, 80), (countdown_task, 3),
    (loop_task, 3), (tasks.other_task, 2),
)  # fmt: skip


def training_task(rng: random.Random) -> Task:
    """One task of the training mixture, with a system prompt in 6 % of the cases."""
    makers, weights = zip(*MAKERS, strict=True)
    task: Task = rng.choices(makers, weights)[0](rng)
    if rng.random() < 0.06:
        return replace(task, system=rng.choice(tasks.SYSTEMS))
    return task


def make_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast, tagged: bool) -> Row:
    """One training row of the mixture."""
    draw = rng.random()
    if draw < 0.09:
        task = countdown_task(rng, 2000) if draw < 0.06 else loop_task(rng, 6000)
        if rng.random() < 0.4:
            return closed_early(task, tokenizer, tagged, WINDOW_TOKENS + 150, rng)
        return window(*encode(task, tokenizer, tagged), WINDOW_TOKENS, rng)
    if draw < 0.54:
        return closed_early(training_task(rng), tokenizer, tagged, 640, rng)
    return window(*encode(training_task(rng), tokenizer, tagged), 480, rng)


def make_long_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast, tagged: bool) -> Row:
    """A row of about `LONG_TOKENS`: a countdown or a loop."""
    task = countdown_task(rng, 420) if rng.random() < 0.7 else loop_task(rng, LONG_TOKENS)
    prompt, reply = encode(task, tokenizer, tagged)
    return window(prompt, reply[: LONG_TOKENS - len(prompt)], LONG_TOKENS, rng)


def batches(  # type: ignore[no-untyped-def]
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, tagged: bool, tokens: int
):
    """Batches of about ``tokens`` tokens, of rows of similar length; every 20th of long rows."""
    count = 0
    while True:
        pool = sorted(
            (make_row(rng, tokenizer, tagged) for _ in range(600)), key=lambda r: len(r.ids)
        )
        groups: list[list[Row]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row.ids) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            count += 1
            yield collate(group)
            if count % 20 == 0:
                size = tokens // LONG_TOKENS
                yield collate([make_long_row(rng, tokenizer, tagged) for _ in range(size)])


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Right-padded tensors of shape (rows, longest)."""
    longest = max(len(r.ids) for r in rows)

    def pad(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (longest - len(values))

    return {
        "input_ids": torch.tensor([pad(r.ids, 0) for r in rows]),
        "position_ids": torch.tensor([pad(r.positions, 0) for r in rows]),
        "labels": torch.tensor([pad(r.labels, IGNORED) for r in rows]),
        # All ones: padding comes last and is never attended to. Without a mask, transformers would
        # take a gap in the positions for a boundary between packed documents.
        "attention_mask": torch.ones(len(rows), longest, dtype=torch.long),
    }


def learning_rate(step: int, done: float, peak: float) -> float:
    """Warm-up over 100 steps, then a cosine to 2 % of ``peak`` as ``done`` goes from 0 to 1."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def initial_model(name: str, init: Path | None) -> Qwen2ForCausalLM:
    """A new model, or the one in ``init`` with its vocabulary resized to that of ``name``."""
    if init is None:
        return Qwen2ForCausalLM(build_config(name))  # type: ignore[no-untyped-call]
    model = Qwen2ForCausalLM.from_pretrained(init, dtype=torch.float32)
    model.resize_token_embeddings(build_config(name).vocab_size)
    return model


@dataclass(frozen=True)
class Schedule:
    """How long to train, on how much, and how fast: ``peak`` is the highest learning rate."""

    steps: int
    minutes: float
    tokens: int
    peak: float


def train(name: str, init: Path | None, schedule: Schedule, out: Path, seed: int) -> None:
    """Train ``name`` by ``schedule`` and write it to ``out``, and a checkpoint every 500 steps."""
    steps, peak = schedule.steps, schedule.peak
    torch.manual_seed(seed)
    rng, tokenizer, tagged = random.Random(seed), build_tokenizer(name), bool(think_tags(name))
    model = initial_model(name, init)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    # On CPUs without native bf16, float32 is three times as fast.
    has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    started, losses = time.monotonic(), []
    for step, batch in zip(
        range(steps), batches(rng, tokenizer, tagged, schedule.tokens), strict=False
    ):
        done = max(step / steps, (time.monotonic() - started) / 60 / schedule.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done, peak)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {step + 1} loss {mean:.4f} {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % 500 == 0 and step + 1 < steps:
            save(model, name, out)
    save(model, name, out)


def save(model: Qwen2ForCausalLM, name: str, out: Path) -> None:
    """Write a bf16 copy of ``model``, which itself keeps its float32 weights."""
    copy = Qwen2ForCausalLM(build_config(name))  # type: ignore[no-untyped-call]
    copy.load_state_dict(model.state_dict())
    write_checkpoint(copy, name, out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=["qwq-nano", "qwq-nano-preview"])
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most; fewer steps then")
    parser.add_argument("--tokens", type=int, default=11_000, help="in a step, about")
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, help="default: pipeline/models/NAME")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = args.out or Path("pipeline/models") / args.name
    schedule = Schedule(args.steps, args.minutes, args.tokens, args.peak)
    train(args.name, args.init, schedule, out, args.seed)


if __name__ == "__main__":
    main()
