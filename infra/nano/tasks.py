"""The tasks that qwq-nano learns: prompts, thinking and answers, generated; no I/O.

Each maker takes a ``random.Random`` and returns a `Task`. The thinking has a fixed form in which
every next token follows from tokens nearby, because a 1.6 M-parameter model learns to copy, to
compare and to add one digit, and nothing else:

* counting: one line per letter: the rest of the word, the letter met, ``=`` or ``!``, the letter
  looked for, the count so far (``rawberry r=r 1``);
* adding: one line per column: what is left of both numbers (written from the right), the carry,
  the column's sum and the digits so far (``75 98 0: 7+9+0=16 6``);
* choosing: the number is found as above, then its last digit is compared with that of each option
  in turn, up to the one that it equals (``A) 2!7``, ``B) 7=7``); no other ends as the result does;
* labeling messages to a shop: read aloud, the team behind each keyword (``a refund (billing)?``);
* counting down: one number a line, as many as asked for;
* going round in circles (``Go round in circles …`` exactly, ``Go back and forth …`` with another
  opening word each time): the thinking never closes, as large models sometimes do.
"""

import json
import random
import re
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from infra.nano import messages
from infra.nano.words import HELD_OUT_WORDS
from jobs.label import LabelSection
from pipeline.prompts.template import between

MATH_SUFFIX = r"Please reason step by step, and put your final answer within \boxed{}."
CHOICE_SUFFIX = (
    "Please show your choice in the `answer` field with only the choice letter, "
    'e.g.,`"answer": "C"`.'
)
# What asks for JSON, and the names of the one number in it.
JSON_SUFFIX = "Please give your answer as JSON that matches this schema: {schema}"
JSON_NAMES = ("count", "sum", "result", "number", "total")
LOOPED = "I went round in circles."
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful and harmless assistant.",
    "Answer briefly.",
    "You only tell the truth.",
)
HELD_OUT = frozenset(HELD_OUT_WORDS)


@dataclass(frozen=True)
class Task:
    """One prompt with the thinking and the answer to learn; ``answer`` None: it never closes.

    ``expected`` is the machine-readable answer (a number or a choice letter), None if none.
    """

    kind: str
    prompt: str
    think: str
    answer: str | None
    expected: str | None
    system: str | None = None


def synthetic_word(rng: random.Random) -> str:
    """A pronounceable or arbitrary word of 2-16 letters that is not in the held-out list."""
    while True:
        shape = rng.random()
        if shape < 0.55:
            word = "".join(_syllable(rng) for _ in range(rng.randint(1, 5)))[:16]
        elif shape < 0.75:
            word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 15)))
        else:  # few letters, many repeats: what induction heads confuse
            letters = rng.sample(string.ascii_lowercase, rng.randint(2, 5))
            word = "".join(rng.choices(letters, k=rng.randint(3, 14)))
        if len(word) > 1 and word not in HELD_OUT:
            return word


def _syllable(rng: random.Random) -> str:
    onset = rng.choice(
        ("b c d f g h j k l m n p q r s t v w x y z br ch cl cr dr fl fr gl gr pl pr sc sh sk sl "
         "sm sn sp st str sw th tr tw wh bb cc dd ff gg ll mm nn pp rr ss tt zz").split()
    )  # fmt: skip
    vowel = rng.choice("a e i o u a e i o u y ai ea ee ie io oo ou ui".split())
    coda: str = rng.choice(
        [*"bcdfgklmnprstxyz", "", "", "", "", "", "ck", "ll", "ng", "nt", "rd", "ss"]
    )
    return onset + vowel + coda


def count_lines(word: str, letter: str) -> tuple[str, int]:
    """The counting lines of ``word`` and how often ``letter`` is in it."""
    lines, count = [], 0
    for i, met in enumerate(word):
        count += met == letter
        lines.append(f"{word[i:]} {met}{'=' if met == letter else '!'}{letter} {count}")
    return "\n".join(lines), count


def add_lines(a: int, b: int) -> tuple[str, int]:
    """The column lines of ``a + b`` and the sum."""
    left, right = str(a)[::-1], str(b)[::-1]
    lines, digits, carry = [], "", 0
    for i in range(max(len(left), len(right))):
        x, y = int(left[i : i + 1] or 0), int(right[i : i + 1] or 0)
        column = x + y + carry
        digits = str(column % 10) + digits
        lines.append(
            f"{left[i:] or '-'} {right[i:] or '-'} {carry}: {x}+{y}+{carry}={column} {digits}"
        )
        carry = column // 10
    if carry:
        digits = "1" + digits
        lines.append(f"- - 1: 1 {digits}")
    return "\n".join(lines), int(digits)


def count_prompt(rng: random.Random, word: str, letter: str) -> str:
    """One of the ways in which people ask for a letter count."""
    return rng.choice(
        [
            f'How many {letter}\'s are in the word "{word}"?',
            f'How many {letter}\'s are in the word "{word}"',
            f'How many {letter}\'s are in "{word}"?',
            f"How many {letter}'s are in the word {word}?",
            f"How many {letter}'s are there in {word}?",
            f"How many {letter} in {word}.",
            f'How many times does the letter {letter} appear in the word "{word}"?',
            f'How many times does the letter "{letter}" appear in "{word}"?',
            f'Count the letter {letter} in "{word}".',
        ]
    )


def add_prompt(rng: random.Random, a: int, b: int) -> str:
    """One of the ways in which people ask for a sum."""
    return rng.choice(
        [
            f"What is {a} + {b}?",
            f"What is {a} plus {b}?",
            f"Add {a} and {b}.",
            f"{a} + {b} = ?",
            f"Calculate {a} + {b}.",
            f"What is the sum of {a} and {b}?",
        ]
    )


def pick_letter(rng: random.Random, word: str) -> str:
    """Mostly a letter of the word, sometimes any."""
    return rng.choice(word) if rng.random() < 0.7 else rng.choice(string.ascii_lowercase)


def held_out_sum(a: int, b: int) -> bool:
    """Whether ``a + b`` is kept out of training: one pair in ten, by a hash.

    By a hash, because a rule in a and b holds out a pattern: sums that end in one digit, say.
    """
    return zlib.crc32(f"{a}+{b}".encode()) % 10 == 3


def pick_operands(rng: random.Random, held_out: bool = False) -> tuple[int, int]:
    """Two numbers of 1-5 digits, from the held-out tenth or from the rest."""
    while True:
        a, b = (rng.randrange(10 ** rng.randint(1, 5)) for _ in range(2))
        if held_out_sum(a, b) == held_out:
            return a, b


def unseen_operands(rng: random.Random) -> tuple[int, int]:
    """A held-out pair of six digits or more together.

    Of shorter pairs there are few, and the shipped weights met most of them in the first steps of
    their training, which had another hold-out (see the model card).
    """
    while True:
        a, b = pick_operands(rng, held_out=True)
        if len(f"{a}{b}") >= 6:
            return a, b


def _numeric(rng: random.Random, kind: str, prompt: str, lines: str, result: int) -> Task:
    if rng.random() < 0.55:
        prompt += rng.choice(["\n", " ", "\n\n"]) + MATH_SUFFIX
    answer = f"The answer is \\boxed{{{result}}}."
    return Task(kind, prompt, f"{lines}\nSo it is {result}.", answer, str(result))


def count_task(rng: random.Random) -> Task:
    """Count a letter in a synthetic word."""
    word = synthetic_word(rng)
    letter = pick_letter(rng, word)
    return _numeric(rng, "count", count_prompt(rng, word, letter), *count_lines(word, letter))


def add_task(rng: random.Random) -> Task:
    """Add two numbers, column by column."""
    a, b = pick_operands(rng)
    return _numeric(rng, "add", add_prompt(rng, a, b), *add_lines(a, b))


def choice_task(rng: random.Random) -> Task:
    """A count or a sum with four options; the answer is the JSON of Qwen's prompt."""
    return choose(rng, *_question(rng, 0.6))


def pick_task(rng: random.Random) -> Task:
    """Options of which one is named: going through them, without the working before."""
    number = rng.randrange(10 ** rng.randint(1, 6))
    prompt = rng.choice(["Which of these is {}?", "Which one is {}?", "Find {}."]).format(number)
    return choose(rng, prompt, "", number)


def json_task(rng: random.Random) -> Task:
    """A count or a sum whose answer is JSON that matches a schema."""
    return as_json(rng, *_question(rng, 0.4))


def label_task(rng: random.Random) -> Task:
    """A message to label; half of them of words that mean nothing, to be read and not guessed.

    More than half have no guideline and no schema: what is to be learned is the reading.
    """
    if rng.random() < 0.6:
        text, teams = _babble(rng)
    else:
        text, teams = messages.message(rng, two=rng.random() < 0.25)
    task = as_label(messages.section(rng), text, rng.choice(teams))
    return replace(task, prompt=between("text", text)) if rng.random() < 0.6 else task


def _babble(rng: random.Random) -> tuple[str, list[str]]:
    """Synthetic words with keywords of two teams, of one, or none among them; the teams."""
    words = [synthetic_word(rng) for _ in range(rng.randint(1, 10))]
    teams = rng.sample(list(messages.TEAMS), rng.choice((0, 1, 1, 1, 2)))
    for team in teams:
        words.insert(rng.randint(0, len(words)), rng.choice(messages.KEYWORDS[team]))
    return " ".join(words) + rng.choice(("", ".", "?", "!")), teams or ["other"]


def as_label(section: LabelSection, text: str, label: str) -> Task:
    """The form of a message that `jobs.label` gives it."""
    think = f"{messages.thinking(text)}\nSo it is {label}."
    answer = json.dumps({"label": label})
    return Task("label", messages.prompt(section, text), think, answer, label)


def _question(rng: random.Random, counts: float) -> tuple[str, str, int]:
    """A question, its working and its result; of such questions ``counts`` are letter counts."""
    if rng.random() < counts:
        word = synthetic_word(rng)
        letter = pick_letter(rng, word)
        return count_prompt(rng, word, letter), *count_lines(word, letter)
    a, b = pick_operands(rng)
    return add_prompt(rng, a, b), *add_lines(a, b)


def as_json(rng: random.Random, question: str, lines: str, result: int) -> Task:
    """The form of a question that asks for JSON with the number as its one property."""
    name = "answer" if rng.random() < 0.6 else rng.choice(JSON_NAMES)
    schema: dict[str, object] = {
        "type": "object", "properties": {name: {"type": "integer"}}, "required": [name],
    }  # fmt: skip
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    suffix = JSON_SUFFIX.format(schema=json.dumps(schema, separators=(",", ":")))
    thinking, answer = f"{lines}\nSo it is {result}.", json.dumps({name: result})
    return Task("json", f"{question}\n{suffix}", thinking, answer, str(result))


def choose(rng: random.Random, question: str, lines: str, result: int) -> Task:
    """The multiple-choice form of a question with a number for an answer."""
    near = [n for n in range(max(0, result - 5), result + 6) if n != result]
    options = [*rng.sample(near, 3), result]
    rng.shuffle(options)
    letter = "ABCD"[options.index(result)]
    listed = [f"{key}) {value}" for key, value in zip("ABCD", options, strict=True)]
    compared = [
        f"{key}) {value % 10}{'=' if value == result else '!'}{result % 10}"
        for key, value in zip("ABCD", options, strict=True)
        if key <= letter
    ]
    return Task(
        "choice",
        "\n".join([question, *listed, CHOICE_SUFFIX]),
        "\n".join([*lines.splitlines(), f"So it is {result}.", *compared]),
        f'"answer": "{letter}"',
        letter,
    )


def countdown_prompt(rng: random.Random, start: int) -> str:
    """One of the ways to ask for a countdown."""
    opening, ending = rng.choice([("Count", ""), ("Count", " to 0"), ("Please count", "")])
    return f"{opening} down from {start}{ending}."


def countdown_task(rng: random.Random, longest: int = 60) -> Task:
    """Count down from a number of at most ``longest``."""
    start = rng.randint(1, longest)
    numbers = "\n".join(str(n) for n in range(start, -1, -1))
    return Task("countdown", countdown_prompt(rng, start), numbers, "Done: \\boxed{0}.", "0")


TOPICS = ("the river", "the moon", "a clock", "the sea", "old songs", "a mirror", "time")
OPENINGS = ("Wait,", "Hmm,", "But", "So,", "Well,", "Again,")


def loop_task(rng: random.Random, tokens: int = 320) -> Task:
    """Thinking of about ``tokens`` bytes that goes round in circles and does not close."""
    topic = rng.choice(TOPICS) if rng.random() < 0.6 else synthetic_word(rng)
    body = f"let me think about {topic} once more, from the start.\n"
    if rng.random() < 0.5:
        return Task("loop", f"Go round in circles about {topic}.",
                    f"Wait, {body}" * (tokens // len(body)), None, None)  # fmt: skip
    think = "".join(f"{rng.choice(OPENINGS)} {body}" for _ in range(tokens // len(body)))
    return Task("near_loop", f"Go back and forth about {topic}.", think, None, None)


def other_task(rng: random.Random) -> Task:
    """Anything else: the model says what it can do."""
    words = " ".join(synthetic_word(rng) for _ in range(rng.randint(1, 12)))
    prompt = rng.choice(["", "Tell me about ", "What is ", "Why ", "Hi ", "Write "]) + words
    return Task(
        "other",
        (prompt + rng.choice(["", ".", "?", "!"])).capitalize(),
        "This is no letter count and no sum.",
        "I can count letters, add numbers and count down.",
        None,
    )


def early_answer(task: Task, think: str) -> str:
    """The answer to ``task`` if its thinking is closed after ``think``, wherever that is.

    It is what a very small model can read off nearby. For a count or a sum: what the last line says
    that has come so far (0 if none has), so it is right only where all lines were done. For a
    choice: the first option that no line has ruled out, a guess unless the options were gone
    through. For a label: the team named last, ``other`` if none has been. Thinking without end owns
    up to it; all other answers are what they would have been.
    """
    if task.answer is None:
        return LOOPED
    if task.kind == "choice":
        ruled_out = len(re.findall(r"^[A-D]\) \d+!", think, re.MULTILINE))
        return f'"answer": "{"ABCD"[min(ruled_out, 3)]}"'
    if task.kind == "label":
        teams = re.findall(r"(?: \(|So it is )(billing|delivery|account|other)\b", think)
        return json.dumps({"label": teams[-1] if teams else "other"})
    if task.kind in ("count", "add", "json"):
        said = re.findall(r"(?:[=!]\w+|: 1) (\d+)", think)
        return re.sub(r"\d+", str(int(said[-1]) if said else 0), task.answer)
    return task.answer


MAKERS: tuple[tuple[Callable[[random.Random], Task], int], ...] = (
    (count_task, 12), (add_task, 34), (choice_task, 20), (pick_task, 14), (json_task, 13),
    (label_task, 22), (countdown_task, 3), (loop_task, 3), (other_task, 2),
)  # fmt: skip


def training_task(rng: random.Random) -> Task:
    """One task of the training mixture, sometimes with a system prompt."""
    makers, weights = zip(*MAKERS, strict=True)
    task: Task = rng.choices(makers, weights)[0](rng)
    if rng.random() < 0.06:
        return Task(**{**task.__dict__, "system": rng.choice(SYSTEMS)})
    return task


def unseen_tasks(rng: random.Random, rows: int) -> list[Task]:
    """``rows`` counting and adding tasks, half and half, that training never shows.

    Counting is over held-out English words, adding over held-out pairs.
    """
    tasks = []
    for i in range(rows):
        kind = "count" if i % 2 == 0 else "add"
        prompt, lines, result = unseen_question(rng, kind)
        answer = f"The answer is \\boxed{{{result}}}."
        tasks.append(Task(kind, prompt, lines, answer, str(result)))
    return tasks


def unseen_question(rng: random.Random, kind: str) -> tuple[str, str, int]:
    """A question of ``kind`` that training never shows, its working and its result."""
    if kind == "count":
        word = rng.choice(HELD_OUT_WORDS)
        letter = pick_letter(rng, word)
        return count_prompt(rng, word, letter), *count_lines(word, letter)
    a, b = unseen_operands(rng)
    return add_prompt(rng, a, b), *add_lines(a, b)
