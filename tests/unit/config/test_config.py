"""The configuration: what is refused, in which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.job import Job
from jobs.judge import JudgeJob
from jobs.label import LabelJob
from jobs.stages import is_list_of_stages, load_stages
from jobs.synthesize_config import Synthesis
from pipeline.answers.json_schema import JsonForm
from pipeline.config.load import fingerprint_of, load_as, load_config, parse_config, read_yaml
from pipeline.config.run_config import RunConfig
from pipeline.config.sections import FormatConfig
from pipeline.engines import engine_type
from pipeline.errors import ConfigError
from pipeline.output.manifest import run_settings
from pipeline.prompts.columns import PromptColumns
from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS, ThinkFormat

JOBS: dict[str, type[RunConfig]] = {
    "judge": JudgeJob, "label": LabelJob, "openai-batch": Job, "synthesize": Synthesis,
}  # fmt: skip
MINIMAL = {"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"}}
CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_is_valid(path: Path) -> None:
    if is_list_of_stages(read_yaml(path)):
        runs = [stage.run for stage in load_stages(str(path)).stages]
    else:
        config = load_as(JOBS.get(path.stem, RunConfig), path)
        runs = [config.run if isinstance(config, Job) else config]
    for run in runs:
        engine_type(run.engine).check(run.engine)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.temprature=0.6", "unknown key temprature; did you mean temperature?"),
        ("sampling.temperature=0", "sampling.temperature: 0 is greedy decoding"),
        ("sampling.top_k=1", "sampling.top_k: 1 is greedy decoding"),
        ("sampling.n=0", "sampling.n: Input should be greater than or equal to 1 (got 0)"),
        ("sampling.n=many", "sampling.n: Input should be a valid integer"),
        (
            "model.preset=qwq",
            "model.preset: Input should be 'qwq-32b', 'qwq-32b-preview' or 'qwen2'",
        ),
        ("model.format=think_tags", "model.format: Input should be a valid dictionary"),
        ("model.format.clsoe=x", "model.format.clsoe: unknown key clsoe; did you mean close?"),
        ("model.format.open=<think>", "model.format: close is missing; it ends the thinking"),
        ("model.format.close=''", "model.format.close: String should have at least 1 character"),
        (
            "model.format.close_pattern='('",
            "model.format.close_pattern: is not a regular expression",
        ),
        ("model.format={close: x, close_pattern: y}", "close_pattern does not match close"),
        (
            "model.format={close: x, close_pattern: x*}",
            "close_pattern matches empty text",
        ),
        ("output.rename.anser=x", "unknown key anser; did you mean answer?"),
        ("output.rename.answer=think", "two columns would be named think"),
        ("engine.replicas=0", "engine.replicas: Input should be greater than or equal to 1"),
        ("engine.replicas=[0, 8]", "engine.replicas: must be a whole number from 1, or the least"),
        ("engine.replicas=[8]", "engine.replicas: must be a whole number from 1, or the least"),
        ("engine.replicas=[true, 8]", "engine.replicas: must be a whole number from 1, or the"),
        ("engine.replicas=true", "engine.replicas: must be a whole number from 1, or the least"),
        ("engine.replicas=[8, 1]", "engine.replicas: the first number is the least, the second"),
        ("colour=red", "unknown key colour"),
        ("input.path.x=1", "--set input.path.x: path is a value, not a section"),
        ("nonsense", "--set takes key=value"),
        ("model=", "model: "),
        (
            "answer.format=boxd",
            "answer.format: unknown name boxd; did you mean boxed? (accepted: tex",
        ),
        ("answer.format=no_such:A", "answer.format: no_such:A can't be loaded: No module"),
        ("answer.format=math:pi", "answer.format: math:pi is not a subclass of pipeline.answers."),
        ("answer.format=json", "answer: format json needs json_schema: a JSON Schema, a file"),
        ("answer.json_schema={}", "answer: json_schema needs format: json or sets, not text"),
        (
            "answer.ask_again=true",
            "answer: ask_again needs a format that reads free text, not text",
        ),
        (
            "answer={format: json, json_schema: {}, ask_again: true}",
            "answer: ask_again needs a format that reads free text, not json",
        ),
        ("answer={format: json, json_schema: {type: 7}}", "json_schema is not a JSON Schema: 7"),
        ("answer={format: json, json_schema: none.json}", "json_schema none.json can't be read"),
        ("answer={format: json, json_schema: 'os:no'}", "json_schema os:no: module 'os' has no"),
        ("answer={format: json, json_schema: 'no_such:A'}", "on PYTHONPATH, on every node"),
        ("answer={format: json, json_schema: {enum: [2024-01-01]}}", "json_schema is not JSON"),
        ("answer={format: json, json_schema: {$ref: 'http://x/y'}}", "$ref http://x/y is not in"),
        ("answer={format: json, json_schema: {$ref: '#/$defs/a'}}", "$ref #/$defs/a is not in"),
        ("answer={format: json, json_schema: 'os:path'}", "os:path: it is not a pydantic model"),
        ("prompt.template='{text!r}'", "prompt.template: {} must hold a column's name"),
        (
            "prompt={template: {text: }}",
            "prompt.template: must be text (in YAML, put quotes around it",
        ),
        ("engine.vllm={a: 1, a: 2}", "the key a is there twice, in lines 1 and 1; keep one"),
        ("sampling.n=2 # x", "sampling.n: Input should be a valid integer"),
        ("prompt.suffix=\udcff", "--set prompt.suffix: the value is not UTF-8"),
        ('prompt.system="\\ud800"', "--set prompt.system: the text in line 1 is not UTF-8"),
        ("prompt.template=Hello", "prompt.template: names no column"),
        ("prompt.template='{'", "prompt.template: "),
        ("prompt.suffix=Math", "prompt.suffix Math is no name of a suffix; did you mean math?"),
        ("prompt.suffix=boxed", "is no name of a suffix; did you mean math?"),
        ("sampling.max_tokens=0100", "--set sampling.max_tokens: 0100 in line 1 is 64 in YAML"),
        ("sampling.n=yes", "sampling.n: must be a number; yes, no, on and off are true or false"),
        ("sampling={temperature: on, n: 2}", "sampling.temperature: must be a number; yes, no"),
        ("output.path=", "output.path: must be text"),
        ("output.path=' '", "output.path: is empty"),
        ("output.path=hf://datasets/a/b", "the hub has no atomic create, which keeps two drivers"),
        ("prompt.suffix=json", "prompt.suffix json needs answer.format json"),
        ("sampling.agree=2", "sampling.agree needs an answer.format"),
        ("thinking.early_answer={}", "thinking.early_answer needs an answer.format"),
        ("thinking.early_answer.agree=0", "thinking.early_answer.agree"),
        ("thinking.early_answer.control_share=0", "thinking.early_answer.control_share"),
        ("thinking.early_answer={signs: [Wait, '']}", "signs: a sign without text"),
        ("thinking.early_answer.below=stop", "below: stop needs min_agreement"),
        ("sampling.agree=0", "sampling.agree: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_setting_is_one_clear_message(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("input: {path: in}\noutput: {path: out}\nmodel: {path: qwq-nano}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert message in str(caught.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, "sampling": {"n": 0, "topk": 1}, "engine": {"tp": 2}})
    assert all(key in str(caught.value) for key in ("sampling.n", "sampling.topk", "engine.tp"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: [", "is not valid YAML"),
        ("- a", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("output: {path: out}", "input: is required"),
        ("input: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        (
            "input:\n  path: a\n  dedupe: true\n  path: b\n",
            "key path is there twice, in lines 2 and 4; keep one",
        ),
        (
            "sampling: {n: 1}\ninput: {path: a}\nsampling: {n: 2}",
            "key sampling is there twice, in lines 1 and 3",
        ),
        (
            "x: &x {a: 1, b: 2}\ny: {c: {<<: *x, a: 2, a: 3}}",
            "key a is there twice, in lines 2 and 2",
        ),
        ("input: &a {path: *a}", "the value in line 1 is a part of itself"),
        ('input: {path: "\\udcff"}', "the text in line 1 is not UTF-8"),
        ("input: " + "[" * 5000, "is not valid YAML"),
        ("input: {path: no}", r"input.path: must be text \(in YAML, put quotes .*, got False"),
        ("label: {labels: [010, 011]}", "010 in line 1 is 8 in YAML: write that, or put quotes"),
        ("limits: {minutes: 1:30}", "1:30 in line 1 is 90 in YAML"),
    ],
)
def test_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_sections_without_a_line_have_their_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "input: {path: in}\noutput: {path: out}\nmodel: {path: qwq-nano}\n"
        "sampling:\n  # n: 2\nengine:\n  vllm:\n    # enforce_eager: true\n"
    )
    config = load_config(file)
    assert (config.sampling.n, config.engine.vllm) == (1, {})
    file.write_text("input:\noutput: {path: out}\nmodel: {path: qwq-nano}\n")
    with pytest.raises(ConfigError, match="input: is required"):
        load_config(file)


@pytest.mark.parametrize("section", ["https://hooks/s3cret", ["https://hooks/s3cret"]])
def test_url_in_place_of_the_section_notify_is_not_repeated(section: object) -> None:
    with pytest.raises(ConfigError, match="notify: must be a mapping with url") as caught:
        parse_config({**MINIMAL, "notify": section})
    assert "s3cret" not in str(caught.value)


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"can't read the config nowhere.yaml: .*No such file"):
        load_config("nowhere.yaml")


def test_json_schema_comes_from_where_it_is(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["a", "😀"]}}}
    file = tmp_path / "label.json"
    file.write_text(json.dumps(schema))
    for source in (schema, str(file)):
        answer = {"format": "json", "json_schema": source}
        config = parse_config({**MINIMAL, "answer": answer, "prompt": {"suffix": "json"}})
        assert config.answer.load_format().form == JsonForm(schema)
        assert config.suffix_text is not None
        assert config.suffix_text.endswith(
            ': {"type":"object","properties":{"label":{"enum":["a","😀"]}}}'
        )
        assert list(config.warnings) == []
    model = "tests.unit.answers.test_json:Sum"
    config = parse_config({**MINIMAL, "answer": {"format": "json", "json_schema": model}})
    form = config.answer.load_format().form
    assert form is not None
    assert form.schema["required"] == ["value"]
    assert list(config.warnings) == [
        "answer.format is json, and no prompt.suffix asks for it; unless your prompts do, set "
        "prompt.suffix=json"
    ]


def test_more_can_not_agree_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"sampling.agree is 3, more than sampling.n, 2"):
        parse_config({**MINIMAL, "answer": {"format": "boxed"}, "sampling": {"n": 2, "agree": 3}})


def test_config_can_not_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config(MINIMAL).sampling.n = 2  # type: ignore[misc]


def test_preset_values_stand_unless_overridden() -> None:
    policy = parse_config({**MINIMAL, "sampling": {"top_k": 20}}).sampling
    assert (policy.top_k, policy.temperature, policy.max_tokens) == (20, 0.6, 32_768)


@pytest.mark.parametrize(("preset", "top_k"), [("qwq-32b", 40), ("qwen2", -1)])
def test_null_and_silence_keep_the_presets_value_and_leave_it_to_jobs(
    preset: str, top_k: int
) -> None:
    model = {"path": "qwq-nano", "preset": preset}
    sampling = {"top_k": None, "temperature": 0.7, "agree": None}
    for sections in ({"sampling": sampling}, {}):
        policy = parse_config({**MINIMAL, "model": model, **sections}).sampling
        assert (policy.top_k, policy.agree, policy.max_tokens) == (top_k, None, 32_768)
        assert policy.model_fields_set == ({"temperature"} if sections else set())


def test_manifest_names_the_policies_as_outputs_on_disk_do() -> None:
    settings = run_settings(parse_config(MINIMAL), PromptColumns("prompt"), "")
    policies = {k: v for k, v in settings.items() if k.startswith(("sampling.", "thinking."))}
    assert list(policies.items()) == [
        ("sampling.n", 1), ("sampling.temperature", 0.6), ("sampling.top_p", 0.95),
        ("sampling.top_k", 40), ("sampling.min_p", 0.0), ("sampling.presence_penalty", 0.0),
        ("sampling.repetition_penalty", 1.0), ("sampling.max_tokens", 32_768),
        ("sampling.seed", 0), ("sampling.agree", None), ("thinking.budget_tokens", None),
        ("thinking.rescue", True), ("thinking.answer_tokens", 2048),
        ("thinking.detect_loops", True), ("thinking.loop_retries", 1),
        ("thinking.loop_presence_penalty", 0.5),
    ]  # fmt: skip


def test_format_takes_the_place_of_the_presets() -> None:
    def run(**model: Any) -> RunConfig:
        return parse_config({**MINIMAL, "model": {"path": "qwq-nano", **model}})

    assert run().think_format == THINK_TAGS
    assert run(preset="qwen2").think_format == ThinkFormat()
    assert run(preset="qwq-32b-preview").think_format == HEADINGS
    own = run(preset="qwq-32b-preview", format={"close": "</t>"})
    assert own.think_format == ThinkFormat(close="</t>")
    columns = PromptColumns(prompt="prompt")
    assert run_settings(own, columns, "")["model.format.close"] == "</t>"
    assert run_settings(run(), columns, "")["model.format.close"] == "</think>"


@pytest.mark.parametrize("think_format", [THINK_TAGS, HEADINGS])
def test_presets_formats_could_be_configured(think_format: ThinkFormat) -> None:
    assert FormatConfig(**vars(think_format)).model_dump() == vars(think_format)


def test_fingerprint_does_not_depend_on_order() -> None:
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_names_of_columns_are_taken_only_in_runs_that_have_them() -> None:
    """Outputs from before there were early answers may have such names."""
    config = {**MINIMAL, "answer": {"format": "boxed"}}
    renamed = {**config, "output": {"path": "out", "rename": {"parsed": "control"}}}
    assert "control" in [field.name for field in parse_config(renamed).trace_fields]
    with pytest.raises(ConfigError, match="two columns would be named control"):
        parse_config({**renamed, "thinking": {"early_answer": {}}})


@pytest.mark.parametrize(
    ("early", "thinking", "can"),
    [
        ({"agree": 4, "every_tokens": 500}, {}, False),
        ({"agree": 4, "every_tokens": 499}, {}, True),
        ({}, {"budget_tokens": 768}, False),
        ({"probe_share": 0.001}, {}, False),
    ],
)
def test_early_answers_that_can_never_be_are_warned_of(
    early: dict[str, Any], thinking: dict[str, Any], can: bool
) -> None:
    config = parse_config(
        {
            **MINIMAL, "answer": {"format": "boxed"}, "sampling": {"max_tokens": 2000},
            "thinking": {"early_answer": early, **thinking},
        }
    )  # fmt: skip
    assert can is not any("can close nothing" in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("replicas", "least", "most", "text"),
    [(1, 1, 1, "1"), (8, 8, 8, "8"), ([1, 8], 1, 8, "1 to 8"), ([2, 2], 2, 2, "2 to 2")],
)
def test_number_of_engines_or_a_range(replicas: object, least: int, most: int, text: str) -> None:
    sections = {"input": {"path": "-"}, "output": {"path": "-"}, "model": {"path": "qwq-nano"}}
    engine = parse_config({**sections, "engine": {"replicas": replicas}}).engine
    assert (engine.min_replicas, engine.max_replicas) == (least, most)
    assert (engine.replicas_text, engine.is_elastic) == (text, isinstance(replicas, list))
