"""Context tiers: each row in one, by its length alone; settings that they decide are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines import build_engine, engine_type
from pipeline.errors import ConfigError, ModelError
from pipeline.execution.context_tiers import (
    AS_CONFIGURED,
    NO_ENGINE_KIND,
    UNRENDERED,
    assign,
    divide,
    make_context_tiers,
)
from pipeline.execution.prompt_lengths import count_tokens
from pipeline.planning import Picks, Range, Shard, bundles, split_parts
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.tokenizer import load_model_config
from pipeline.schema import with_origin
from tests.conftest import PROMPTS, write_shards

QWQ = {"max_position_embeddings": 40_960, "rope_theta": 1_000_000.0}


def config(vllm: dict[str, Any] | None = None, max_tokens: int = 32_768) -> RunConfig:
    return parse_config(
        {
            "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
            "sampling": {"max_tokens": max_tokens},
            "engine": {"context": "auto", "replicas": 2, "vllm": vllm or {}},
        }
    )  # fmt: skip


def test_tiers_of_qwq_have_the_form_that_vllm_takes() -> None:
    args = {"max_num_seqs": 8, "hf_overrides": {"head_dim": 128}}
    tiers = make_context_tiers(config(args), QWQ)
    assert [tier.context for tier in tiers[:-1]] == [40_960, 65_536, 131_072]
    native, double, fourfold, none = (tier.applied(config(args)).engine for tier in tiers)
    assert native.vllm == {**args, "max_model_len": 40_960}
    assert double.vllm["hf_overrides"]["rope_parameters"]["factor"] == 2.0
    assert fourfold.vllm == {
        "max_num_seqs": 8,
        "max_model_len": 131_072,
        "hf_overrides": {
            "head_dim": 128,
            "rope_parameters": {
                "rope_theta": 1_000_000.0, "rope_type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 32_768,
            },
            "max_position_embeddings": 131_072,
        },
    }  # fmt: skip
    assert fourfold.replicas == 2
    assert (none.kind, none.device, none.replicas, none.ranks) == (NO_ENGINE_KIND, "cpu", 1, 1)
    no_engine = build_engine(tiers[-1].applied(config(args)), None)
    assert no_engine.context_tokens == 131_072
    assert AS_CONFIGURED.applied(config(args)) == config(args)
    factors = [engine_type(engine).yarn_factor(engine) for engine in (native, double, fourfold)]
    assert factors == [None, 2.0, 4.0]


@pytest.mark.parametrize("name", ["qwq-nano", "qwq-nano-preview"])
def test_newer_spelling_of_the_rope_section_is_read(name: str) -> None:
    *_, longest, _none = make_context_tiers(config(), load_model_config(name))
    assert longest.engine is not None
    overrides = longest.engine.vllm["hf_overrides"]
    assert overrides["rope_parameters"] == {
        "rope_theta": 10_000.0, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 32_768,
    }  # fmt: skip


def test_tier_of_what_the_model_itself_can_do_is_left_out() -> None:
    *tiers, _none = make_context_tiers(config(), {**QWQ, "max_position_embeddings": 65_536})
    assert [tier.context for tier in tiers] == [65_536, 131_072]


@pytest.mark.parametrize(
    ("tokens", "tier"),
    [
        (1, 0), (8192, 0), (8193, 1), (32_768, 1), (32_769, 2), (98_304, 2),
        (98_305, 2), (131_071, 2), (131_072, 3), (UNRENDERED, 3),
    ],
)  # fmt: skip
def test_qwens_own_rule_is_the_border(tokens: int, tier: int) -> None:
    """Up to 8,192 tokens of prompt beside 32,768 of output: no YaRN."""
    tiers = make_context_tiers(config(), QWQ)
    assert assign(tiers, np.array([tokens]), 32_768).tolist() == [tier]


LENGTHS = st.lists(st.integers(0, 200_000) | st.just(UNRENDERED), max_size=60)


@given(LENGTHS, st.integers(1, 40_959))
def test_tiers_hold_what_they_get_and_none_shorter_would(
    lengths: list[int], max_tokens: int
) -> None:
    tiers = make_context_tiers(config(max_tokens=max_tokens), QWQ)
    numbers = assign(tiers, np.array(lengths, np.int64), max_tokens).tolist()
    for tokens, number in zip(lengths, numbers, strict=True):
        fits = [i for i, tier in enumerate(tiers[:-1]) if tokens + max_tokens <= tier.context]
        wanted = fits[0] if fits else 2 if tokens + 1 <= 131_072 else 3
        assert number == wanted
    ordered = [number for _, number in sorted(zip(lengths, numbers, strict=True))]
    assert ordered == sorted(ordered)


@given(st.lists(st.integers(0, 30), max_size=5), st.integers(1, 12), st.integers(1, 9), st.data())
def test_divided_ranges_hold_each_row_once_in_order(
    sizes: list[int], per_part: int, per_bundle: int, data: st.DataObject
) -> None:
    shards = [Shard(f"s{i}.parquet", f"/s{i}", n, 1, "t") for i, n in enumerate(sizes)]
    parts = [part for part in split_parts(shards, per_part) if part.rows]
    todo = [Range(part, part.start, part.stop, _picks(part, data)) for part in parts]
    shares: dict[int, list[Range]] = {}
    marked: dict[tuple[str, int], int] = {}
    for bundle in bundles(todo, per_bundle):
        rows = [(piece.part.name, row) for piece in bundle for row in _rows(piece)]
        marks = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
        marked.update(zip(rows, marks, strict=True))
        for mark, piece in divide(bundle, np.array(marks)):
            shares.setdefault(mark, []).append(piece)
    for mark, pieces in shares.items():
        rows = [(piece.part.name, row) for piece in pieces for row in _rows(piece)]
        assert rows == [row for row, own in marked.items() if own == mark]
        assert all(piece.rows for piece in pieces)
    # What the pieces stand for is what the whole stood for, each row of a part once.
    spans = sorted((p.part.name, p.start, p.stop) for share in shares.values() for p in share)
    covered = [(name, row) for name, start, stop in spans for row in range(start, stop)]
    assert covered == sorted((p.part.name, row) for p in todo for row in range(p.start, p.stop))


def _picks(part: Any, data: st.DataObject) -> Picks | None:
    rows = data.draw(st.none() | st.sets(st.integers(part.start, part.stop - 1), min_size=1))
    return None if rows is None else tuple((row, (0, 2)) for row in sorted(rows))


def _rows(piece: Range) -> list[int]:
    if piece.picks is None:
        return list(range(piece.start, piece.stop))
    assert all(samples == (0, 2) for _, samples in piece.picks)
    return [row for row, _ in piece.picks]


def test_tokens_are_counted_of_the_rows_to_do_alone(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [5], prompt="What is {} + 1?")
    path = tmp_path / "in/shard-00000.parquet"
    [part] = split_parts([Shard("s", str(path), 5, path.stat().st_size, "t")], 9)
    run = config().model_copy(
        update={"input": config().input.model_copy(update={"path": str(tmp_path)})}
    )
    bundle = [Range(part, 0, 2), Range(part, 2, 5, ((4, (0,)),))]
    counts = count_tokens(run, PromptColumns(prompt="prompt"), PROMPTS, bundle)
    assert counts.shape == (2, 3)
    assert len(set(counts[0].tolist())) == 1
    assert counts[1].tolist() == [run.sampling.max_tokens] * 3
    missing = count_tokens(run, PromptColumns(prompt="id"), PROMPTS, bundle)
    assert missing[0].tolist() == [UNRENDERED] * 3


def test_each_row_goes_where_its_own_limit_fits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/shard-00000.parquet"
    own = [None, '{"max_tokens": 100}', '{"max_tokens": 50000}', '{"max_tokens": 0}']
    pq.write_table(pa.table({"prompt": ["Hi"] * 4, "own": pa.array(own, pa.string())}), path)
    [part] = split_parts([Shard("s", str(path), 4, path.stat().st_size, "t")], 9)
    by_row = {"path": str(tmp_path), "sampling_column": "own"}
    run = config().model_copy(update={"input": config().input.model_copy(update=by_row)})
    schema = pa.schema([*PROMPTS, ("own", pa.string())])
    tokens, limits = count_tokens(run, PromptColumns("prompt"), schema, [Range(part, 0, 4)])
    assert limits.tolist() == [run.sampling.max_tokens, 100, 50_000, run.sampling.max_tokens]
    assert tokens[3] == UNRENDERED, "of wrong settings, which are refused before"
    assert assign(make_context_tiers(config(), QWQ), tokens, limits)[:3].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("vllm", "model", "max_tokens", "message"),
    [
        ({"max_model_len": 9}, QWQ, 9, "engine.vllm has max_model_len, which engine.context=auto"),
        ({"hf_overrides": {"rope_parameters": {}}}, QWQ, 9, "engine.vllm has rope_parameters"),
        ({"hf_overrides": "x"}, QWQ, 9, "engine.vllm.hf_overrides must be a mapping"),
        ({}, QWQ, 40_960, "sampling.max_tokens is 40960, which leaves no room .* of 40960 tokens"),
        ({}, {**QWQ, "rope_scaling": {"type": "yarn"}}, 9, "has rope type yarn already"),
        ({}, {"rope_theta": 1.0}, 9, "lacks max_position_embeddings or rope_theta"),
    ],
)
def test_what_has_no_tiers_is_refused_in_words(
    vllm: dict[str, Any], model: dict[str, Any], max_tokens: int, message: str
) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        make_context_tiers(config(vllm, max_tokens), model)


def test_model_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"can't read the config.json of model.path file:.*No such file"
    ):
        load_model_config(f"file://{tmp_path}")


def test_model_config_at_a_url_is_read() -> None:
    folder = Path(__file__).parents[3] / "pipeline/models/qwq-nano"
    assert load_model_config(f"file://{folder}") == load_model_config("qwq-nano")


def test_neighbours_of_one_part_are_read_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, a row group is decoded from its start."""
    import pipeline.input.shards

    write_shards(tmp_path, [200])
    found = pipeline.input.shards.find_shards(str(tmp_path))
    [shard], schema = found.shards, found.schema
    [part] = split_parts([shard], 4096)
    pieces = [
        piece for mark, piece in Range(part, 0, 200).split([i % 3 == 0 for i in range(200)]) if mark
    ]
    opened: list[Range] = []
    read = pipeline.input.rows.read_rows

    def noted(url: str, piece: Range, schema: Any) -> Any:
        opened.append(piece)
        return read(url, piece, schema)

    monkeypatch.setattr(pipeline.input.rows, "read_rows", noted)
    tables = list(pipeline.input.rows.read_bundle(str(tmp_path), pieces, (0,), with_origin(schema)))
    assert [i for table in tables for i in table["id"].to_pylist()] == list(range(0, 200, 3))
    assert len(opened) == 1
