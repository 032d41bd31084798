"""Generate the tasks that qwq-nano learns: prompts, thinking and answers; no I/O.

Each maker takes a ``random.Random`` and returns a `Task`. A 1.6 M-parameter model learns to copy,
to compare and to add one digit, and nothing else. So the thinking has a fixed form, in which each
token follows from tokens nearby:

* counting, one line per letter: the rest of the word, the current letter, ``=`` or ``!``, the
  wanted letter, the count so far (``rawberry r=r 1``);
* adding, one line per column: the remaining digits of both numbers in reverse, the carry, the
  column's sum, the digits of the result so far (``75 98 0: 7+9+0=16 6``);
* choosing: the number as above, then its last digit compared with that of each option, up to the
  equal one (``A) 2!7``, ``B) 7=7``, ``So it is B.``); no other option has the same last digit;
* labeling messages to a shop: the message with the team after each keyword
  (``a refund (billing)?``);
* all of these are done again several times (`checks`);
* counting down: one number per line, as many as the prompt asks for;
* looping: the thinking never closes, as in large models at times. ``Go round in circles …`` repeats
  exactly; ``Go back and forth …`` varies the opening word.
"""

import json
import random
import string
import zlib
from dataclasses import dataclass, replace

from infra.nano import messages
from infra.nano.checks import CHECKS, LABEL_CHECKS, near, with_checks
from infra.nano.words import HELD_OUT_WORDS
from jobs.label_section import LabelSection
from pipeline.prompts.template import between

MATH_SUFFIX = r"Please reason step by step, and put your final answer within \boxed{}."
CHOICE_SUFFIX = (
    "Please show your choice in the `answer` field with only the choice letter, "
    'e.g.,`"answer": "C"`.'
)
# The request for JSON, and the names of its one property.
JSON_SUFFIX = "Please give your answer as JSON that matches this schema: {schema}"
JSON_NAMES = ("count", "sum", "result", "number", "total")
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful and harmless assistant.",
    "Answer briefly.",
    "You only tell the truth.",
)
HELD_OUT = frozenset(HELD_OUT_WORDS)


@dataclass(frozen=True)
class Task:
    """A prompt with the thinking and the answer to learn.

    ``answer``: None if the thinking never closes. ``expected``: the machine-readable answer (a
    number, a letter or a label), None if there is none.
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
        else:  # few letters, many repeats: these confuse induction heads
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
    """The counting lines of ``word``, and the number of occurrences of ``letter``."""
    lines, count = [], 0
    for i, met in enumerate(word):
        count += met == letter
        lines.append(f"{word[i:]} {met}{'=' if met == letter else '!'}{letter} {count}")
    return "\n".join(lines), count


def add_lines(a: int, b: int) -> tuple[str, int]:
    """The column lines of ``a + b``, and the sum."""
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
    """A prompt for a letter count, in one of several phrasings."""
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
    """A prompt for a sum, in one of several phrasings."""
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
    """A letter of the word in 70 % of the cases, otherwise any letter."""
    return rng.choice(word) if rng.random() < 0.7 else rng.choice(string.ascii_lowercase)


def held_out_sum(a: int, b: int) -> bool:
    """Whether ``a + b`` is kept out of training: one pair in ten, by a hash.

    An arithmetic rule would hold out a pattern, such as all sums with the same last digit.
    """
    return zlib.crc32(f"{a}+{b}".encode()) % 10 == 3


def pick_operands(rng: random.Random, held_out: bool = False) -> tuple[int, int]:
    """Two numbers of 1-5 digits, from the held-out tenth or from the rest."""
    while True:
        a, b = (rng.randrange(10 ** rng.randint(1, 5)) for _ in range(2))
        if held_out_sum(a, b) == held_out:
            return a, b


def unseen_operands(rng: random.Random) -> tuple[int, int]:
    """A held-out pair with at least six digits together.

    There are few shorter pairs, and the shipped weights saw most of them in their first training
    steps, which held out other pairs (see the model card).
    """
    while True:
        a, b = pick_operands(rng, held_out=True)
        if len(f"{a}{b}") >= 6:
            return a, b


def _numeric(rng: random.Random, kind: str, prompt: str, lines: str, result: int) -> Task:
    if rng.random() < 0.55:
        prompt += rng.choice(["\n", " ", "\n\n"]) + MATH_SUFFIX
    think, concluded = _thinking(rng, lines, result)
    return Task(kind, prompt, think, f"The answer is \\boxed{{{concluded}}}.", str(result))


def _thinking(rng: random.Random, lines: str, result: int) -> tuple[str, str]:
    return with_checks(rng, lambda n: f"{lines}\nSo it is {n}.", str(result), near(result))


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
    """A count or a sum with four options; the answer is the JSON of Qwen's choice prompt."""
    return choose(rng, *question(rng, 0.6))


def pick_task(rng: random.Random) -> Task:
    """Find a given number among four options, without a count or sum before."""
    number = rng.randrange(10 ** rng.randint(1, 6))
    prompt = rng.choice(["Which of these is {}?", "Which one is {}?", "Find {}."]).format(number)
    return choose(rng, prompt, "", number)


def json_task(rng: random.Random) -> Task:
    """A count or a sum whose answer is JSON that matches a schema."""
    return as_json(rng, *question(rng, 0.4))


def label_task(rng: random.Random) -> Task:
    """A message to label; 60 % of them are nonsense words, so that the model reads the keywords.

    In 60 % the prompt is the text alone, without guideline and schema.
    """
    if rng.random() < 0.6:
        text, teams = _babble(rng)
    else:
        text, teams = messages.message(rng, two=rng.random() < 0.25)
    task = as_label(rng, messages.section(rng), text, rng.choice(teams))
    return replace(task, prompt=between("text", text)) if rng.random() < 0.6 else task


def _babble(rng: random.Random) -> tuple[str, list[str]]:
    """Synthetic words with keywords of two, one or no teams among them; and these teams."""
    words = [synthetic_word(rng) for _ in range(rng.randint(1, 10))]
    teams = rng.sample(list(messages.TEAMS), rng.choice((0, 1, 1, 1, 2)))
    for team in teams:
        words.insert(rng.randint(0, len(words)), rng.choice(messages.KEYWORDS[team]))
    return " ".join(words) + rng.choice(("", ".", "?", "!")), teams or ["other"]


def as_label(rng: random.Random, section: LabelSection, text: str, label: str) -> Task:
    """The labeling task of a message, with the prompt of `jobs.label`."""
    read, others = messages.thinking(text), [team for team in messages.TEAMS if team != label]
    think, concluded = with_checks(
        rng, lambda team: f"{read}\nSo it is {team}.", label, others, LABEL_CHECKS
    )
    answer = json.dumps({"label": concluded})
    return Task("label", messages.prompt(section, text), think, answer, label)


def question(rng: random.Random, counts: float) -> tuple[str, str, int]:
    """A question, its thinking and its result; ``counts``: the share of letter counts."""
    if rng.random() < counts:
        word = synthetic_word(rng)
        letter = pick_letter(rng, word)
        return count_prompt(rng, word, letter), *count_lines(word, letter)
    a, b = pick_operands(rng)
    return add_prompt(rng, a, b), *add_lines(a, b)


def as_json(rng: random.Random, question: str, lines: str, result: int) -> Task:
    """The JSON form of a question: the answer has the number as its one property."""
    name = "answer" if rng.random() < 0.6 else rng.choice(JSON_NAMES)
    schema: dict[str, object] = {
        "type": "object", "properties": {name: {"type": "integer"}}, "required": [name],
    }  # fmt: skip
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    suffix = JSON_SUFFIX.format(schema=json.dumps(schema, separators=(",", ":")))
    think, concluded = _thinking(rng, lines, result)
    answer = json.dumps({name: int(concluded)})
    return Task("json", f"{question}\n{suffix}", think, answer, str(result))


def choose(rng: random.Random, question: str, lines: str, result: int) -> Task:
    """The multiple-choice form of a question whose answer is a number."""
    others = [n for n in range(max(0, result - 5), result + 6) if n != result]
    options = [*rng.sample(others, 3), result]
    rng.shuffle(options)
    listed = [f"{key}) {value}" for key, value in zip("ABCD", options, strict=True)]

    def attempt(letter: str) -> str:
        found = options["ABCD".index(letter)]
        compared = [
            f"{key}) {value % 10}{'=' if value == found else '!'}{found % 10}"
            for key, value in zip("ABCD", options, strict=True)
            if key <= letter
        ]
        number = f"So it is {found}."
        return "\n".join([*lines.splitlines(), number, *compared, f"So it is {letter}."])

    letter = "ABCD"[options.index(result)]
    wrong = [key for key in "ABCD" if key != letter] if lines else []
    think, concluded = with_checks(rng, attempt, letter, wrong, CHECKS if lines else (3, 1))
    prompt = "\n".join([question, *listed, CHOICE_SUFFIX])
    return Task("choice", prompt, think, f'"answer": "{concluded}"', letter)


def countdown_prompt(rng: random.Random, start: int) -> str:
    """A prompt for a countdown, in one of several phrasings."""
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
    """Thinking of about ``tokens`` tokens (bytes) that loops and does not close."""
    topic = rng.choice(TOPICS) if rng.random() < 0.6 else synthetic_word(rng)
    body = f"let me think about {topic} once more, from the start.\n"
    if rng.random() < 0.5:
        return Task("loop", f"Go round in circles about {topic}.",
                    f"Wait, {body}" * (tokens // len(body)), None, None)  # fmt: skip
    think = "".join(f"{rng.choice(OPENINGS)} {body}" for _ in range(tokens // len(body)))
    return Task("near_loop", f"Go back and forth about {topic}.", think, None, None)


def other_task(rng: random.Random) -> Task:
    """Any other prompt: the model says what it can do."""
    words = " ".join(synthetic_word(rng) for _ in range(rng.randint(1, 12)))
    prompt = rng.choice(["", "Tell me about ", "What is ", "Why ", "Hi ", "Write "]) + words
    return Task(
        "other",
        (prompt + rng.choice(["", ".", "?", "!"])).capitalize(),
        "This is no letter count and no sum.",
        "I can count letters, add numbers and count down.",
        None,
    )


def unseen_tasks(rng: random.Random, rows: int) -> list[Task]:
    """``rows`` tasks that training never shows, alternately counting and adding.

    Counting uses held-out English words, adding held-out pairs.
    """
    tasks = []
    for i in range(rows):
        kind = "count" if i % 2 == 0 else "add"
        prompt, lines, result = unseen_question(rng, kind)
        answer = f"The answer is \\boxed{{{result}}}."
        tasks.append(Task(kind, prompt, lines, answer, str(result)))
    return tasks


def unseen_question(rng: random.Random, kind: str) -> tuple[str, str, int]:
    """A question of ``kind`` that training never shows, its thinking and its result."""
    if kind == "count":
        word = rng.choice(HELD_OUT_WORDS)
        letter = pick_letter(rng, word)
        return count_prompt(rng, word, letter), *count_lines(word, letter)
    a, b = unseen_operands(rng)
    return add_prompt(rng, a, b), *add_lines(a, b)
