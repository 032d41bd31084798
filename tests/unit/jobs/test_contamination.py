"""Which prompts have a benchmark's question in them, and how benchmarks are read."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench import contamination as bench
from jobs.contamination import COMMON, Benchmarks, normalized_words, prompt_text
from pipeline.errors import InputError
from pipeline.prompts.columns import PromptColumns

LONG = (
    "Every morning Aya bakes 12 loaves and sells each of them for 3.50 dollars at the harbor. How "
    "many dollars does she earn in a week of 1,000 minutes?"
)
SHORT = "What is the capital of the smallest country in Asia?"
QUESTIONS = [("b:0", LONG), ("b:1", SHORT), ("b:2", "Who am I?"), ("b:3", "请问三加五等于多少")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LONG, "b:0"),
        (LONG.upper().replace(" ", "\n\t "), "b:0"),
        (LONG.replace("1,000", "1000").replace("?", " ?"), "b:0"),
        (f"Please answer. {LONG} Show your work in at most 7 lines.", "b:0"),
        (LONG.replace("harbor", "market"), "b:0"),
        (f"Q: {LONG.replace('earn', 'make')} A:", "b:0"),
        (LONG.replace("12", "15"), None),  # the same exercise with another number
        (LONG.split(" at the ")[1], None),
        ("A baker sells 12 loaves for 3.50 dollars each, 1,000 in a week. What is the sum?", None),
        (SHORT.lower(), "b:1"),
        (f"Be brief. {SHORT}", "b:1"),
        (SHORT.replace("Asia", "Europe"), None),
        ("who am i", "b:2"),
        ("Guess who am I?", None),  # so few words stand in many texts
        ("老师问：请问三加五等于多少？谢谢", "b:3"),
        ("", None),
        ("?!", None),
    ],
)
def test_question_is_found_in_a_prompt(text: str, found: str | None) -> None:
    assert Benchmarks(QUESTIONS).find(text) == found


@pytest.mark.parametrize("word", range(14))
def test_any_one_changed_word_of_fourteen_hides_nothing(word: int) -> None:
    question = [f"w{'abcdefghijklmn'[i]}" for i in range(14)]
    index = Benchmarks([("b:0", " ".join(question))])
    question[word] = "other"
    assert index.find(" ".join(question)) == "b:0"


def test_words_that_many_questions_share_say_nothing() -> None:
    """Otherwise an answer's usual form would make each exercise of a contest a known one."""
    form = "the answer can be written as a fraction of relatively prime integers so find the sum"
    own = "where a bird flies over old town walls at noon"
    letters = ["".join(chr(ord("a") + int(digit)) for digit in str(i)) for i in range(200)]
    shared = [
        (f"b:{word}", f"{' '.join(f'{word}{c}' for c in 'vwxyz')} {form}") for word in letters
    ]
    index = Benchmarks([*shared, ("own", f"{own} {form}")])
    assert index.find(f"Something else altogether: {form}") is None
    assert index.find(f"{own} {form}") == "own"
    few = Benchmarks(shared[: COMMON // 2])
    assert few.find(f"Something else altogether: {form}") is not None


def test_question_of_shared_words_alone_is_found_as_a_whole() -> None:
    words = [f"w{i}" for i in range(COMMON + 20)]
    window = 16
    questions = [
        (f"b:{i}", " ".join([*words[:window], f"tail{i}"])) for i in range(COMMON + 1)
    ]  # fmt: skip
    plain = ("plain", " ".join(words[:window]))
    index = Benchmarks([*questions, plain])
    assert index.find(f"so {plain[1]} then") == "plain"
    assert len(index) == len(questions) + 1


def test_repeated_questions_count_once() -> None:
    """A file that lists each question 64 times must not make its words common ones."""
    index = Benchmarks([(f"b:{i}", LONG) for i in range(64)])
    assert (len(index), index.find(LONG)) == (1, "b:0")


def test_hits_and_false_alarms_among_two_thousand_seeds() -> None:
    rng = random.Random(0)
    drawn = bench.questions(rng, 2500)
    index = Benchmarks((str(i), text) for i, text in enumerate(drawn[:500]))
    hidden = bench.planted(rng, drawn[:500], 50)
    assert len(hidden) == 50
    assert {way for way, _ in hidden} == set(bench.WAYS)
    assert [way for way, text in hidden if index.find(text) is None] == []
    alarms = sum(index.find(text) is not None for text in drawn[500:2450])
    assert alarms < 0.05 * 1950


def test_normalized_words_keep_numbers() -> None:
    assert normalized_words("Ｆull-width, x² = 1,234.50 & snake_case") == [
        "full", "width", "x", "2", "1234", "50", "snake", "case",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["aime.parquet", "aime.jsonl"])
@pytest.mark.parametrize("column", ["problem", "Aufgabe"])
def test_benchmarks_are_read_from_files(tmp_path: Path, name: str, column: str) -> None:
    rows = [{"id": 1, column: " "}, {"id": 2, column: LONG.replace("at", "at\u2028")}]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    given = None if column == "problem" else column
    index = Benchmarks.load({str(path): given})
    assert (len(index), index.find(LONG)) == (1, f"{path}:1")
    if given is not None:
        with pytest.raises(InputError, match=r"none of question, problem.*it has id, Aufgabe.*nam"):
            Benchmarks.load({str(path): None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("", "it has no questions"),
        ('{"question": null}', "it has no questions"),
        ('{"question": ["a"]}', "row 0: the question is list, not text"),
        ('{"question": "a"}\n\n[1]', "line 3 is no JSON object"),
        ("question\nWho?", "neither Parquet nor JSON lines .line 1: "),
        ('\ufeff{"question": "a"}\n{bad', "neither Parquet nor JSON lines .line 2: "),
        ("PAR1 but no more", "neither Parquet nor JSON lines"),
    ],
)
def test_file_without_questions_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "b.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"synthesize.benchmarks {path}: .*{message}"):
        Benchmarks.load({str(path): None})


def test_text_of_a_prompt_is_what_its_turns_say() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"messages": [*turns, {"role": "user", "content": "c"}], "x": 1}
    assert prompt_text(row, PromptColumns(messages="messages")) == "a\nb\nc"
    assert prompt_text(row, PromptColumns(template="Is {x}?")) == "Is 1?"
    assert prompt_text({"messages": None}, PromptColumns(messages="messages")) == ""


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("60km in 2h and 90km in 3h", "60 km in 2 h and 90 km in 3 h"),
        ("x^2 + y^2 = 25 and x^3", "x² + y² = 25 and x^{3}"),
        ("10^100 or a_1", "10¹⁰⁰ or a₁"),
        ("the first 1000 of 10 000", "the first 1,000 of 10000"),
        ("the first 1 000 000", "the first 1\u00a0000\u202f000"),
        ("12 345 of them", "12 \n 345 of them"),
        ("straw\u200bberry and let\u00adter", "strawberry and letter"),
    ],
)
def test_words_are_the_same_in_other_spellings(question: str, prompt: str) -> None:
    assert normalized_words(question) == normalized_words(prompt)


def test_decimals_lists_and_other_numbers_stay_apart() -> None:
    for one, other in (("3.500", "3500"), ("1, 200", "1200"), ("10 20", "1020"), ("1,00", "100")):
        assert normalized_words(one) != normalized_words(other)
