"""What decontamination finds: planted benchmark questions among seeds that only resemble them.

    python -m jobs.bench contamination

Benchmark and clean seeds come from the same templates of exercises, with other names, things and
numbers: the hardest case for false alarms. Of 50 questions, each is planted once: verbatim, with
other spacing, case and punctuation, with one word changed (no number), embedded in a longer text,
or embedded with a word changed. Other rules of the field are beside ours: any 13 words in common
(GPT-3), any 8 words (s1, Open-R1), runs of 8 words that cover half of the question (Tülu 3).
"""

import argparse
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.bench.tables import keep, markdown
from jobs.contamination import LEAST_WORDS, Benchmarks, normalized_words

NAMES = (
    "Ada Ben Chidi Dana Emeka Fatima Goran Hana Iris Jonas Kemal Lena Mina Noor Otto Priya".split()
)
THINGS = (
    "apples marbles stickers coins books pencils tickets shells stamps beads cards plates".split()
)
PLACES = "market library school harbor museum station farm bakery stadium park".split()
WORDS = "quietly red seven-sided ordinary wooden recent northern famous simple tall".split()
LONG = (
    "{name} has {a} {things}. At the {place} {name} buys {b} more and then gives {c} of them to "
    "{other}. How many {things} does {name} have now?",
    "A train leaves the {place} at {a} kilometers per hour. {b} minutes later a second train "
    "leaves the same {place} at {c} kilometers per hour. How far have both traveled by then?",
    "Let $p$ and $q$ be primes with $p + q = {a}$. The probability that {name} draws two {things} "
    "of the same color can be written as $\\frac{{m}}{{n}}$, where $m$ and $n$ are relatively "
    "prime positive integers. Find $m + n$ when there are {b} {things}.",
    "In triangle $ABC$, $AB = {a}$, $BC = {b}$ and $CA = {c}$. Point $D$ lies on side $BC$ so that "
    "$AD$ bisects the angle at $A$. The length of $AD$ can be written as $\\frac{{m}}{{n}}$, where "
    "$m$ and $n$ are relatively prime positive integers. Find $m + n$.",
    "{name} and {other} share the cost of {a} {things} for the {place}. Each of the {things} "
    "costs {b} cents, and {other} pays {c} cents less. How much does {name} pay in all?",
    "What is the remainder when the sum of the first {a} positive multiples of {b} is divided by "
    "{c}?",
    "A rectangular garden near the {place} is {a} meters long and {b} meters wide. {name} puts a "
    "fence around it with a post every {c} meters. How many posts does {name} need?",
    "How many ordered pairs of integers $(x, y)$ with $1 \\le x \\le {a}$ satisfy $x y = {b}$ and "
    "$x + y < {c}$?",
    "The {place} sells {things} in boxes of {a}. {name} needs {b} {things} for {c} guests. What is "
    "the smallest number of boxes to buy so that every guest gets the same number?",
    "Write a function that takes a list of {a} {things} and returns the {b} largest of them in "
    "descending order, without sorting the whole list. {name} calls it {c} times a second.",
    "Which of these best explains why {things} at the {place} were cheaper in {a} than in {b}, "
    "although {name} found that demand had risen by {c} percent?",
    "{name} reads {a} pages of a book on the first day and {b} pages more on each day after it. "
    "The book has {c} pages. On which day does {name} finish the book?",
    "Which of the following statements about the {things} that {name} took from the {place} to "
    "the {place2} is not supported by what {other} says about them?",
    "Write a function that groups {things} by {place} and then by {place2}, and returns the group "
    "in which {name} and {other} have most {things} in common.",
)  # fmt: skip
SHORT = (
    "What is {a} times {b}?", "Who painted the {place}?", "Name {a} kinds of {things}.",
    "What is the square root of {a}?", "Is {a} a prime number?",
)  # fmt: skip
BEFORE = (
    "You are a patient tutor. Read what a student of {name} sent in from the {place}, think about "
    "it first, and answer in full sentences. The student wrote: "
)
AFTER = (
    " Show each step, name every rule that you use, and say at the end how {name} could check the "
    "result with {a} {things}."
)
Rule = Callable[[str], bool]


def exercise(rng: random.Random, templates: Sequence[str]) -> str:
    """One question of ``templates``."""
    name, other = rng.sample(NAMES, 2)
    numbers = {key: rng.randint(2, 400) for key in "abc"}
    place, place2 = rng.sample(PLACES, 2)
    slots = {"name": name, "other": other, "place": place, "place2": place2}
    return rng.choice(templates).format(things=rng.choice(THINGS), **slots, **numbers)


def questions(rng: random.Random, count: int) -> list[str]:
    """``count`` different exercises, one in six of them short."""
    found = dict[str, None]()
    while len(found) < count:
        found[exercise(rng, LONG if rng.random() < 5 / 6 else SHORT)] = None
    return list(found)


def other_spacing(rng: random.Random, text: str) -> str:
    """``text`` in other case, spacing and punctuation."""
    spaced = "".join(f"{c}{rng.choice(('', '', ' '))}" if c in ",.?:$" else c for c in text)
    return "  \n".join(spaced.upper().split(" ")).replace("?", " ?!").replace("'", "\u2019")


def word_changed(rng: random.Random, text: str) -> str:
    """``text`` with another word in place of one that is no number."""
    words = [match.span() for match in re.finditer(r"(?<![\\\w])[a-z]{2,}(?!\w)", text)]
    start, stop = rng.choice(words)
    return f"{text[:start]}{rng.choice(WORDS)}{text[stop:]}"


def embedded(rng: random.Random, text: str) -> str:
    """``text`` in the middle of a longer one."""
    return f"{exercise(rng, (BEFORE,))}{text}{exercise(rng, (AFTER,))}"


def embedded_and_changed(rng: random.Random, text: str) -> str:
    """``text`` with a word changed, in the middle of a longer one."""
    return embedded(rng, word_changed(rng, text))


WAYS = {
    "verbatim": lambda _, text: text,
    "other spacing and case": other_spacing,
    "a word changed": word_changed,
    "embedded": embedded,
    "embedded, a word changed": embedded_and_changed,
}


def rules(benchmark: Sequence[str]) -> dict[str, Rule]:
    """Our rule, and others to compare it with."""
    index = Benchmarks((str(i), text) for i, text in enumerate(benchmark))
    return {
        "ours": lambda text: index.find(text) is not None,
        "any 13 words": _any_run(benchmark, 13),
        "any 8 words": _any_run(benchmark, 8),
        "half in runs of 8": _half_covered(benchmark, 8),
    }


def _runs(text: str, size: int) -> list[tuple[str, ...]]:
    """The runs of ``size`` words; a shorter text is one run."""
    words = normalized_words(text)
    return [tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))]


def _any_run(benchmark: Sequence[str], size: int) -> Rule:
    known = {run for text in benchmark for run in _runs(text, size)}
    return lambda text: any(run in known for run in _runs(text, size))


def _half_covered(benchmark: Sequence[str], size: int) -> Rule:
    own = [(len(normalized_words(text)), _runs(text, size)) for text in benchmark]

    def is_met(text: str) -> bool:
        runs = set(_runs(text, size))
        for length, question in own:
            covered = {i + k for i, run in enumerate(question) if run in runs for k in range(size)}
            if len(covered) >= length / 2:
                return True
        return False

    return is_met


def planted(rng: random.Random, benchmark: Sequence[str], count: int) -> list[tuple[str, str]]:
    """``count`` questions of the benchmark as (way, text), the ways in turn.

    A word is changed only in questions that still have something of their own: long ones.
    """
    ways, chosen = list(WAYS.items()), rng.sample(list(benchmark), count * 2)
    pairs = list[tuple[str, str]]()
    for text in chosen:
        name, change = ways[len(pairs) % len(ways)]
        if "changed" in name and len(normalized_words(text)) < LEAST_WORDS:
            continue
        pairs.append((name, change(rng, text)))
    return pairs[:count]


def main(args: argparse.Namespace, folder: Path) -> None:
    """A line for each rule: hits by way, false alarms; then the speed of ours at a larger size."""
    rng = random.Random(0)
    drawn = questions(rng, args.questions + args.seeds)
    benchmark, clean = drawn[: args.questions], drawn[args.questions :][: args.seeds - args.planted]
    hidden = planted(rng, benchmark, args.planted)
    lines, figures = list[list[str]](), dict[str, dict[str, int]]()
    for rule, is_met in rules(benchmark).items():
        counts = {
            way: sum(is_met(text) for name, text in hidden if name == way) for way in WAYS
        }  # fmt: skip
        alarms = sum(map(is_met, clean))
        figures[rule] = {**counts, "false alarms": alarms}
        of = {way: sum(name == way for name, _ in hidden) for way in WAYS}
        cells = [f"{counts[way]} of {of[way]}" for way in WAYS]
        lines.append([rule, *cells, f"{alarms:,} of {len(clean):,}"])
    many = questions(random.Random(1), args.index)
    start = time.perf_counter()
    index = Benchmarks((str(i), text) for i, text in enumerate(many))
    built = time.perf_counter() - start
    start = time.perf_counter()
    for text in clean:
        index.find(text)
    each = (time.perf_counter() - start) / len(clean)
    speed = (
        f"An index of {args.index:,} questions takes {built:.1f} s; a prompt against it "
        f"{each * 1e6:,.0f} µs, a million of them {each * 1e6 / 60:,.0f} minutes of one core."
    )
    table = f"{markdown(['rule', *WAYS, 'false alarms'], lines)}\n\n{speed}"
    keep(folder, "contamination", table, {"rules": figures, "seconds_a_prompt": each})
