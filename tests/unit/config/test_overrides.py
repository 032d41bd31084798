"""Overrides of the command line, and YAML's own: what a value is taken for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import load_config
from pipeline.config.yaml_text import override_value


def test_overrides_are_yaml_and_reach_nested_keys(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("input: {path: in}\noutput: {path: out}\nmodel: {path: qwq-nano}\n")
    overrides = ["sampling.n=4", "engine.vllm.enforce_eager=true", "prompt.suffix=math"]
    config = load_config(file, overrides)
    assert config.sampling.n == 4
    assert config.engine.vllm == {"enforce_eager": True}
    assert config.suffix_text is not None
    assert r"\boxed{}" in config.suffix_text


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "input: &in {path: in, dedupe: true}\nmodel: {path: qwq-nano}\n"
        "output: {path: out, rename: &r {<<: &s {answer: a}, think: t}}\n"
        "prices: {<<: {gpu_hour: 1}, gpu_hour: 2}\nengine: {options: {<<: *r, answer: b}}\n"
    )
    config = load_config(file)
    assert config.prices.gpu_hour == 2
    assert config.engine.options == {"answer": "b", "think": "t"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Write the final number after ####.", "Write the final number after ####."),
        ("#1 to #5", "#1 to #5"),
        ("a: b", "a: b"),
        ("[x] {y}", "[x] {y}"),
        ("{y}", "{y}"),
        ("- x", "- x"),
        ("yes", "yes"),
        ("2024", "2024"),
        ("1e3", "1e3"),
        ("2024-01-01", "2024-01-01"),
        ("&a *a !b %c @d `e", "&a *a !b %c @d `e"),
        (" two\n lines\n", " two\n lines\n"),
        ("{a: 1, a: 2}", "{a: 1, a: 2}"),
        ('"quoted" and more', '"quoted" and more'),
        ('"two\\nlines"', "two\nlines"),
        ("'null'", "null"),
        ("null", None),
        ("", None),
    ],
)
def test_text_settings_take_the_text_as_it_stands(
    tmp_path: Path, value: str, text: str | None
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("input: {path: in}\noutput: {path: out}\nmodel: {path: qwq-nano}\n")
    config = load_config(file, [f"prompt.suffix={value}", f"model.revision={value}"])
    assert (config.prompt.suffix, config.model.revision) == (text, text)


TEXTS = st.text(st.sampled_from("#:-?,[]{}&*!|>%@`~ \n\tna'\"\\1."))


@given(TEXTS.filter(lambda text: text.strip() and text.strip()[0] not in "'\"~"))
def test_no_text_is_read_as_anything_else(text: str) -> None:
    assert override_value(text, is_text=True) == text
    value = override_value(text, is_text=False)
    assert (
        not isinstance(value, str)
        or value == text
        or value == text.strip()
        or text.strip()[0] in "!&|>"
    )


def test_renamed_columns_are_text_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("input: {path: in}\noutput: {path: out}\nmodel: {path: qwq-nano}\n")
    config = load_config(
        file, ["output.rename.state=on", "engine.options.a=x #1", "engine.replicas=2"]
    )
    assert config.output.rename == {"state": "on"}
    assert config.engine.options == {"a": "x #1"}
    assert config.engine.replicas == 2
