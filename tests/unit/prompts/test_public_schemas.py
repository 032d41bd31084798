"""Well-known data sets: a config of a few lines makes the prompts and references of each.

The rows are ours; only the columns and types are theirs.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.answers.references import cells
from pipeline.config.load import parse_config
from pipeline.errors import ConfigError, InputError, InvalidPromptError
from pipeline.execution.prepare import check_columns
from pipeline.execution.run_input import find_input
from pipeline.prompts.messages import row_messages
from pipeline.prompts.render import TableRow

ASK = "How many legs has a spider?"


def turns(*texts: str, names: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    roles = ("user", "assistant") if names[0] == "role" else ("human", "gpt")
    return [{names[0]: roles[i % 2], names[1]: text} for i, text in enumerate(texts)]


def sharegpt(*texts: str) -> list[dict[str, str]]:
    return turns(*texts, names=("from", "value"))


LETTERED = f"{ASK}\n\nA. 4\nB. 6\nC. 8\nD. 10"
# By data set: a row, the config, the user's last turn, and the reference that is compared.
SCHEMAS: dict[str, tuple[dict[str, Any], dict[str, Any], str, Any]] = {
    "ShareGPT": (
        {"id": "a_0", "conversations": sharegpt("Hi", "Hello!", ASK, "Eight.")},
        {"input": {"final_answer": "drop"}, "answer": {"reference_column": "conversations"}},
        ASK, "Eight.",
    ),
    "OpenThoughts": (
        {"system": "Think well.", "conversations": turns(ASK, "8", names=("from", "value"))},
        {"input": {"final_answer": "drop"}},
        ASK, None,
    ),
    "s1K": (
        {"question": ASK, "solution": "8", "cot_type": "math", "source_type": "x", "cot": None,
         "metadata": "{}", "thinking_trajectories": ["hm"], "attempt": "8"},
        {"input": {"prompt_column": "question"}, "answer": {"reference_column": "solution"}},
        ASK, "8",
    ),
    "NuminaMath": (
        {"source": "cn_k12", "problem": ASK, "solution": r"\boxed{8}",
         "messages": turns(ASK, r"\boxed{8}")},
        {"input": {"final_answer": "drop"}, "answer": {"reference_column": "messages"}},
        ASK, r"\boxed{8}",
    ),
    "UltraFeedback": (
        {"prompt": ASK, "prompt_id": "x", "chosen": turns(ASK, "8"), "rejected": turns(ASK, "9"),
         "messages": turns(ASK, "8"), "score_chosen": 8.0, "score_rejected": 1.0},
        {"input": {"prompt_column": "prompt"}},
        ASK, None,
    ),
    "GSM8K": (
        {"question": ASK, "answer": "4 + 4 = <<4+4=8>>8\n#### 8"},
        {"input": {"prompt_column": "question"},
         "output": {"rename": {"answer": "trace_answer"}},
         "answer": {"reference_column": "answer"}},
        ASK, "4 + 4 = <<4+4=8>>8\n#### 8",
    ),
    "MMLU": (
        {"question": ASK, "subject": "biology", "choices": ["4", "6", "8", "10"], "answer": 2},
        {"prompt": {"template": "{question}\n\n{choices:letters}"},
         "output": {"rename": {"answer": "trace_answer"}},
         "answer": {"format": "choice", "reference_column": "answer"}},
        LETTERED, 2,
    ),
    "GPQA": (
        {"Question": ASK, "Correct Answer": "8", "Incorrect Answer 1": "4",
         "Incorrect Answer 2": "6", "Incorrect Answer 3": "10", "Record ID": "rec1"},
        {"input": {"prompt_column": "Question"}, "answer": {"reference_column": "Correct Answer"}},
        ASK, "8",
    ),
    "AIME": (
        {"ID": "2024-I-1", "Problem": ASK, "Solution": "8", "Answer": 8},
        {"input": {"prompt_column": "Problem"}, "output": {"rename": {"answer": "qwq_answer"}},
         "answer": {"reference_column": "Answer"}},
        ASK, 8,
    ),
    "Alpaca": (
        {"instruction": "Count the legs.", "input": "spider", "output": "8"},
        {"input": {"prompt_column": "instruction", "context_column": "input"},
         "answer": {"reference_column": "output"}},
        "Count the legs.\n\nspider", "8",
    ),
    "content parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "How many legs"},
                                                   {"type": "text", "text": "has a spider?"}]}]},
        {},
        "How many legs\nhas a spider?", None,
    ),
}  # fmt: skip


def rendered(folder: Path, row: dict[str, Any], **sections: Any) -> tuple[str, Any]:
    """The last user turn of a row, and its reference."""
    (folder / "in").mkdir(exist_ok=True)
    table = pa.Table.from_pylist([row])
    pq.write_table(table, folder / "in/a.parquet")
    base: dict[str, Any] = {
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"},
        "answer": {"format": "boxed"} if "reference_column" in sections.get("answer", {}) else {},
    }
    config = parse_config(
        {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    )
    columns = check_columns(config, find_input(config))
    column = config.answer.reference_column
    messages = row_messages(TableRow(table, 0), columns, None, None)
    assert messages[-1]["role"] == "user"
    return messages[-1]["content"], None if column is None else cells(table[column])[0]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_config_of_a_few_lines_is_enough(tmp_path: Path, name: str) -> None:
    row, sections, prompt, reference = SCHEMAS[name]
    assert rendered(tmp_path, row, **sections) == (prompt, reference)


def test_an_answer_that_is_there_is_never_answered_again_unasked(tmp_path: Path) -> None:
    row = {"messages": turns(ASK, "8")}
    with pytest.raises(InvalidPromptError, match=r"ends with an assistant turn.*final_answer=drop"):
        rendered(tmp_path, row)
    only = {"messages": [{"role": "assistant", "content": "8"}]}
    with pytest.raises(InvalidPromptError, match=r"messages: the conversation has no user turn"):
        rendered(tmp_path, only, input={"final_answer": "drop"})
    twice = {"messages": [*turns(ASK, "8"), {"role": "assistant", "content": "Or 9."}]}
    assert rendered(tmp_path, twice, input={"final_answer": "drop"}) == (ASK, None)


def test_a_blank_context_leaves_the_prompt_alone(tmp_path: Path) -> None:
    section = {"prompt_column": "instruction", "context_column": "input"}
    for blank in ("", " \n", None):
        row = {"instruction": ASK, "input": blank, "output": "8"}
        assert rendered(tmp_path, row, input=section) == (ASK, None)
    with pytest.raises(InputError, match=r"context_column needs input.prompt_column"):
        rendered(
            tmp_path, {"messages": turns(ASK), "input": "x"}, input={"context_column": "input"}
        )
    with pytest.raises(ConfigError, match=r"no input column can be set besides"):
        rendered(tmp_path, row, input={"context_column": "input"}, prompt={"template": "{output}"})


def test_options_that_are_no_list_fail_their_row(tmp_path: Path) -> None:
    for value in ("4", [], [str(i) for i in range(27)]):
        with pytest.raises(InvalidPromptError, match=r"choices is no list of 1 to 26 options"):
            rendered(
                tmp_path, {"choices": value},
                prompt={"template": "{choices:letters}"},
            )  # fmt: skip
