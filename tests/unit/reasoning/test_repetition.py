"""Loops are detected, and text that merely repeats itself is not taken for one.

``python -m tests.unit.reasoning.test_repetition`` prints a table of how many are detected, and when.
Tokens have up to four characters, about as with a large model's tokenizer.
"""

import random
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reasoning.repetition import CHECK_TOKENS, EXACT_TOKENS, RepetitionDetector

Make = Callable[[random.Random], Iterator[str]]
TOKENS = 8192
WORDS = (
    "sum root angle prime even odd vector limit proof case value factor graph edge term power "
    "square circle point line bound total digit number series matrix row column area length"
).split()
OPENINGS = ("Wait,", "Hmm,", "But wait,", "So,", "Okay, so", "Alternatively,", "Let me see.", "")


def sentence(rng: random.Random, words: int = 9) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def paragraph(rng: random.Random, sentences: int) -> str:
    return " ".join(sentence(rng, rng.randint(5, 14)) for _ in range(sentences)) + "\n\n"


def repeated(text: str) -> Iterator[str]:
    while True:
        yield text


def random_order(rng: random.Random) -> Iterator[str]:
    ideas = [paragraph(rng, 3) for _ in range(4)]
    while True:
        yield rng.choice(OPENINGS) + " " + rng.choice(ideas)


def long_cycle(rng: random.Random) -> Iterator[str]:
    ideas = [paragraph(rng, rng.randint(2, 4)) for _ in range(10)]
    while True:
        for idea in ideas:
            yield f"{rng.choice(OPENINGS)} {idea}"


LOOPS: dict[str, Make] = {
    "one word": lambda _: repeated("wait "),
    "one line": lambda rng: repeated(sentence(rng) + "\n"),
    "a paragraph": lambda rng: repeated(paragraph(rng, 6)),
    "a long paragraph": lambda rng: repeated(paragraph(rng, 40)),
    "a paragraph with changing openings": lambda rng: (
        f"{rng.choice(OPENINGS)} {text}" for text in repeated(paragraph(rng, 2))
    ),
    "a few paragraphs in random order": random_order,
    "ten paragraphs in a cycle": long_cycle,
    "the same digits": lambda _: repeated("142857"),
}  # fmt: skip


def numbers(rng: random.Random) -> Iterator[str]:
    n = rng.randint(1, 99)
    while True:
        n += 1
        yield f"Check {n}. Is it a prime? No, that does not work. So I go on.\n"


def table(rng: random.Random) -> Iterator[str]:
    for i in range(10**6):
        yield f"| {i} | {rng.choice(WORDS)} | {'yes' if i % 3 else 'no'} | {i * 7 % 13} |\n"


def long_sum(rng: random.Random) -> Iterator[str]:
    total = 0
    while True:
        number = rng.randint(100, 9999)
        total += number
        yield f"Add {number}: the total is {total}.\n"


def code(rng: random.Random) -> Iterator[str]:
    while True:
        name, other = rng.choice(WORDS), rng.choice(WORDS)
        yield (
            f"def {name}_{rng.randrange(1000)}({other}):\n    if not {other}:\n        return None\n"
            f"    for item in {other}:\n        total += item.{rng.choice(WORDS)}\n    return total\n\n\n"
        )


def truth_table(_: random.Random) -> Iterator[str]:
    for i in range(10**6):
        yield "| " + " | ".join("true" if i >> b & 1 else "false" for b in range(9)) + " |\n"


def dots(rng: random.Random) -> Iterator[str]:
    while True:
        yield paragraph(rng, 3) + "..." * rng.randint(1, 60) + "\n" + "-" * 80 + "\n"


def matrices(rng: random.Random) -> Iterator[str]:
    while True:
        yield f"The matrix of step {rng.randrange(10**6)}:\n" + "[0, 0, 0, 0, 0, 0, 0, 0]\n" * 8


def cases(rng: random.Random) -> Iterator[str]:
    for i in range(10**6):
        yield f"Case {i}: x = {rng.randint(-99, 99)}.\nThis gives a contradiction.\nTherefore it fails.\n"


def refrain(rng: random.Random) -> Iterator[str]:
    chorus = paragraph(rng, 4)
    while True:
        yield paragraph(rng, 8) + chorus


def json_lines(rng: random.Random) -> Iterator[str]:
    for i in range(10**6):
        yield f'{{"id": {i}, "label": "{rng.choice(WORDS)}", "valid": true, "score": null}},\n'


def verified(rng: random.Random) -> Iterator[str]:
    """A solution, then two checks of it: long repeats, but not endless."""
    while True:
        whole = paragraph(rng, 12)
        yield from (whole, "Let me double check that.\n", whole, "Once more.\n", whole)


OTHERS: dict[str, Make] = {
    "prose": lambda rng: iter(lambda: paragraph(rng, 5), None), "candidates checked": numbers,
    "a table": table, "a long sum": long_sum, "code": code, "a truth table": truth_table,
    "dots and rules": dots, "matrices of zeros": matrices, "cases": cases,
    "a song with a refrain": refrain, "JSON lines": json_lines, "solutions checked": verified,
    "binary numbers": lambda _: (f"{i:012b}\n" for i in range(10**6)),
    "random digits": lambda rng: iter(lambda: str(rng.randrange(10**9)), None),
}  # fmt: skip


def tokens_to_detection(make: Make, seed: int, piece: int = 64) -> int | None:
    """Number of tokens after which the text of ``make`` counts as a loop; None if it never does."""
    vocabulary: dict[str, int] = {}
    names: list[str] = []
    detector = RepetitionDetector(lambda ids: "".join(names[i] for i in ids))
    new: list[int] = []
    seen = 0
    for text in make(random.Random(seed)):
        for token in re.findall(r"\s?\w{1,4}|\s|[^\w\s]", text):
            if token not in vocabulary:
                vocabulary[token] = len(names)
                names.append(token)
            new.append(vocabulary[token])
        while len(new) >= piece:
            seen += piece
            if detector.add(new[:piece]):
                return seen
            del new[:piece]
        if seen >= TOKENS:
            return None
    return None


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_is_detected(kind: str) -> None:
    detected = [tokens_to_detection(LOOPS[kind], seed) for seed in range(5)]
    assert None not in detected


@pytest.mark.parametrize("kind", OTHERS)
def test_text_that_merely_repeats_is_no_loop(kind: str) -> None:
    assert [tokens_to_detection(OTHERS[kind], seed) for seed in range(5)] == [None] * 5


@given(st.integers(1, 1000), st.integers(1, 97), st.integers(0, 2**32))
def test_every_exact_loop_is_detected_whatever_the_size_of_reports(
    period: int, piece: int, seed: int
) -> None:
    rng = random.Random(seed)
    pattern = [rng.randrange(150_000) for _ in range(period)]
    detector = RepetitionDetector(lambda ids: "".join(chr(0x4E00 + i % 20_000) for i in ids))
    tokens = pattern * ((max(EXACT_TOKENS, 4 * period) + CHECK_TOKENS + piece + 16) // period + 2)
    assert any(detector.add(tokens[i : i + piece]) for i in range(0, len(tokens), piece))


@given(st.lists(st.integers(0, 2**31 - 1), max_size=3000, unique=True), st.integers(1, 97))
def test_tokens_that_never_repeat_are_no_loop(tokens: list[int], piece: int) -> None:
    detector = RepetitionDetector(lambda ids: "".join(f"{i} " for i in ids))
    assert not any(detector.add(tokens[i : i + piece]) for i in range(0, len(tokens), piece))


if __name__ == "__main__":
    print(f"| text | of 20, detected within {TOKENS:,} tokens | after, median |\n|---|---|---|")
    for kind, make in {**LOOPS, **OTHERS}.items():
        hits = sorted(at for at in (tokens_to_detection(make, seed) for seed in range(20)) if at)
        middle = f"{hits[len(hits) // 2]:,}" if hits else "-"
        print(f"| {'loop' if kind in LOOPS else 'no loop'}: {kind} | {len(hits)} | {middle} |")
