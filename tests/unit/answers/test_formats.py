"""The answer formats together: what holds for all, one added from outside, nothing heavy loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers.base import AnswerFormat
from pipeline.answers.boxed import Boxed
from pipeline.answers.formats import ANSWER_FORMATS, answer_format, format_asked_for, parsed_formats


@given(st.text(), st.sampled_from(["text", "boxed", "choice"]))
def test_nothing_raises_and_what_is_found_is_in_the_text(text: str, kind: str) -> None:
    found = answer_format(kind).parse(text)
    assert found is None or found.lower() in text.lower()


@pytest.mark.parametrize("name", ANSWER_FORMATS.names)
def test_format_that_needs_a_prompt_says_which_suffix_asks_for_it(name: str) -> None:
    built_in = answer_format(name)
    assert (built_in.suffix_name is None) == (built_in.suffix is None)
    if built_in.suffix_name is not None:
        asked_for = format_asked_for(built_in.suffix_name, answer_format("text"))
        assert type(asked_for) is type(built_in)


def test_suffix_that_is_text_asks_for_no_format() -> None:
    assert format_asked_for("Be brief.", Boxed()) is None
    assert format_asked_for(None, Boxed()) is None


def test_unknown_format_says_what_is_accepted() -> None:
    with pytest.raises(
        ValueError, match=r"unknown name boxd; did you mean boxed\? \(accepted: text"
    ):
        answer_format("boxd")
    with pytest.raises(ValueError, match=r"^math:pi is not a subclass of .*AnswerFormat"):
        answer_format("math:pi")
    assert parsed_formats() == "boxed, choice, json or sets"


def test_no_answer_is_wrong_and_no_reference_is_no_verdict() -> None:
    class Upper(AnswerFormat):
        def parse(self, answer: str) -> str | None:
            return answer.upper()

    assert Upper().is_correct(None, "A") is False
    assert Upper().is_correct("A", None) is None
    assert Upper().is_correct("A ", "A") is True


def test_computer_algebra_is_loaded_for_a_comparison_only() -> None:
    code = (
        "import sys\n"
        "from pipeline.answers.formats import ANSWER_FORMATS, answer_format\n"
        "print([answer_format(name).suffix_name for name in ANSWER_FORMATS.names])\n"
        "print(sorted({'sympy', 'math_verify', 'jsonschema'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
