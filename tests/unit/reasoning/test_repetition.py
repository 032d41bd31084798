"""Loops are detected, and text that merely repeats itself is not taken for one.

``python -m tests.unit.reasoning.test_repetition`` prints a table of how many are detected, and when.
Tokens have up to four characters, about as with a large model's tokenizer.
"""

import random
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reasoning.repetition import (
    CHECK_TOKENS,
    LINE_TOKENS,
    LOOP_NGRAMS,
    NGRAM_TOKENS,
    RepetitionDetector,
    _normalized,
    loop_onset,
)

Make = Callable[[random.Random], Iterator[str]]
TOKENS = 12_288
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
    "a page": lambda rng: repeated("".join(paragraph(rng, 6) for _ in range(18))),
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


def growing_list(rng: random.Random, arrow: str) -> Iterator[str]:
    """Each line is the one before with one more name in front, up to 600 characters."""
    names = [f"{a}{b}".capitalize() for a in WORDS for b in WORDS]
    rng.shuffle(names)
    line = names.pop()
    while names:
        name = names.pop()
        line = f"{name} {arrow} {line}"
        yield f"{name} is above. So {line}.\n\n"
        if len(line) > 600:
            line = names.pop()


def verdicts(rng: random.Random, line: str) -> Iterator[str]:
    for i in range(101, 10**6):
        yield line.format(i, rng.choice(("prime", "composite", "composite too")))


def copied(rng: random.Random) -> Iterator[str]:
    """A long program, drafted, written again and given as the answer; rows of zeros inside."""
    lines = [f"{rng.choice(WORDS)}_{i} = {rng.choice(WORDS)}({i}, {i * i})\n" for i in range(90)]
    program = "".join(lines[:45]) + "data = [" + "0, " * 120 + "]\n" + "".join(lines[45:])
    while True:
        yield from (paragraph(rng, 40), program, paragraph(rng, 12), program, paragraph(rng, 12))
        yield from (program, paragraph(rng, 80))
        program = program.replace("data", rng.choice(WORDS))


OTHERS: dict[str, Make] = {
    "prose": lambda rng: iter(lambda: paragraph(rng, 5), None), "candidates checked": numbers,
    "a table": table, "a long sum": long_sum, "code": code, "a truth table": truth_table,
    "dots and rules": dots, "matrices of zeros": matrices, "cases": cases,
    "a song with a refrain": refrain, "JSON lines": json_lines, "solutions checked": verified,
    "a program written three times": copied,
    "a growing list": lambda rng: growing_list(rng, "→ ... →"),
    "a growing list of arrows": lambda rng: growing_list(rng, "->"),
    "short verdicts": lambda rng: verdicts(rng, "{}: {}.\n"),
    "short verdicts on lines of their own": lambda rng: verdicts(rng, "{}\n{}\n"),
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


def feed(detector: RepetitionDetector, tokens: list[int], piece: int) -> bool:
    return any(detector.add(tokens[i : i + piece]) for i in range(0, len(tokens), piece))


def one_character_each(token_ids: list[int]) -> str:
    return "".join(chr(0x4E00 + i % 20_000) for i in token_ids)


@settings(max_examples=40)
@given(st.integers(1, 8000), st.integers(0, 4000), st.integers(1, 97), st.integers(0, 2**32))
def test_every_exact_loop_is_detected_in_its_fourth_round(
    period: int, before: int, piece: int, seed: int
) -> None:
    rng = random.Random(seed)
    pattern = [rng.randrange(150_000) for _ in range(period)]
    tokens = [rng.randrange(150_000) for _ in range(before)]
    repeats = max(period * 33 // 10, LOOP_NGRAMS) + NGRAM_TOKENS + 3 * CHECK_TOKENS
    tokens += (pattern * (repeats // period + 1))[:repeats]
    assert feed(RepetitionDetector(one_character_each), tokens, piece)


@settings(max_examples=40)
@given(st.integers(1100, 8000), st.integers(1, 97), st.integers(0, 2**32))
def test_two_rounds_are_no_loop(period: int, piece: int, seed: int) -> None:
    """A text that is written again, such as a draft in the answer."""
    rng = random.Random(seed)
    pattern = [rng.randrange(150_000) for _ in range(period)]
    after = [rng.randrange(150_000) for _ in range(600)]
    assert not feed(RepetitionDetector(one_character_each), pattern * 2 + after, piece)


@settings(max_examples=40)
@given(st.integers(1, 3000), st.integers(0, 4000), st.integers(0, 2**32))
def test_onset_of_an_exact_loop_is_the_end_of_its_first_round(
    period: int, before: int, seed: int
) -> None:
    rng = random.Random(seed)
    pattern = [rng.randrange(1, 150_000) for _ in range(period)]
    tokens = [rng.randrange(1, 150_000) for _ in range(before)]
    repeats = max(period * 33 // 10, period + LOOP_NGRAMS + NGRAM_TOKENS)
    tokens += (pattern * (repeats // period + 1))[:repeats]
    assert loop_onset(tokens, one_character_each) == before + period
    for distance in (1, LINE_TOKENS - 1):
        if before + period > distance and period > LINE_TOKENS:
            lines = [*tokens]
            for at in range(before + period - distance - 1, len(tokens), period):
                lines[at] = 0
            onset = loop_onset(lines, lambda ids: "a" if ids[0] else "\n")
            assert onset == before + period - distance


def test_onset_of_rounds_that_differ_or_of_no_loop_is_not_certain() -> None:
    rng = random.Random(0)
    new = [rng.randrange(150_000) for _ in range(2000)]
    assert loop_onset(new, one_character_each) is None
    assert loop_onset(new[:10], one_character_each) is None
    assert loop_onset(new[:500] * 2, one_character_each) is None
    lists = [token for _ in range(20) for token in (*new[:400], *(rng.sample(new, 12)))]
    assert loop_onset(lists, one_character_each) is None


@pytest.mark.parametrize("kind", ["a page", "ten paragraphs in a cycle", "a growing list"])
def test_the_size_of_reports_changes_nothing(kind: str) -> None:
    """A trace that another engine continues gives all its tokens at once."""
    make = {**LOOPS, **OTHERS}[kind]
    whole = tokens_to_detection(make, 0, piece=4096)
    pieces = tokens_to_detection(make, 0, piece=1)
    assert whole == (pieces and -(-pieces // 4096) * 4096)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=3000, unique=True), st.integers(1, 97))
def test_tokens_that_never_repeat_are_no_loop(tokens: list[int], piece: int) -> None:
    detector = RepetitionDetector(lambda ids: "".join(f"{i} " for i in ids))
    assert not feed(detector, tokens, piece)


@pytest.mark.parametrize("unit", ["wait ", "hmm", "hold on, ", "... ", ".", " ", "\n", "1, "])
@pytest.mark.parametrize("before", ["", "Wait, ", "Hmm... "])
def test_a_megabyte_without_letters_or_sentences_takes_linear_time(unit: str, before: str) -> None:
    """A quadratic pattern takes minutes here, which the hang guard ends."""
    _normalized(before + unit * (10**6 // len(unit)))
    detector = RepetitionDetector(lambda ids: unit * 100 * len(ids))
    assert detector.add([0] * (10**4 // len(unit)))


if __name__ == "__main__":
    print(f"| text | of 20, detected within {TOKENS:,} tokens | after, median |\n|---|---|---|")
    for kind, make in {**LOOPS, **OTHERS}.items():
        hits = sorted(at for at in (tokens_to_detection(make, seed) for seed in range(20)) if at)
        middle = f"{hits[len(hits) // 2]:,}" if hits else "-"
        print(f"| {'loop' if kind in LOOPS else 'no loop'}: {kind} | {len(hits)} | {middle} |")
