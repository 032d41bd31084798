"""The ledger: existence means done, writes are repeatable, foreign output is refused."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.output.layout import MANIFEST, SHARDS
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.planning import PartRef, Shard
from pipeline.storage import Storage
from tests.unit.output.blocks import METADATA, PART, RUN, SCHEMA, block, read


def test_part_appears_with_its_last_fragment_and_in_row_order(ledger: Ledger) -> None:
    for rows in ([104, 105, 106], [100, 101], [108, 109, 102, 103]):
        [part] = ledger.write_block(block(rows))
        assert part == PART
        assert not ledger.commit(part, RUN, SCHEMA, METADATA)
    assert ledger.listing().durable_ranges(0) == {
        PART.name: [(100, 102), (102, 104), (104, 107), (108, 110)]
    }
    ledger.write_block(block([107]))
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert read(ledger)["id"].to_pylist() == list(range(100, 110))
    assert read(ledger).schema.names == SCHEMA.names
    assert ledger.listing().finished_parts() == {PART.name}
    assert ledger.listing().journal == {}


@pytest.mark.parametrize("is_cut", [True, False])
def test_damaged_fragment_is_named_with_what_to_do(ledger: Ledger, is_cut: bool) -> None:
    """Cut short; or with a changed byte in its data, which only a checksum tells."""
    ledger.write_block(block(list(range(100, 110))))
    [name] = [info.name for info in ledger.store.files() if info.name.endswith(".rows")]
    data = ledger.store.read(name)
    ids = data.index(bytes.fromhex("28b52ffd")) + 12  # within the first column
    ledger.store.put(name, data[:200] if is_cut else data[:ids] + b"~~" + data[ids + 2 :])
    with pytest.raises(OutputError, match=rf"{name} in the output is damaged \(.*remove that file"):
        ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert ledger.store.exists(name)


def test_repeated_block_keeps_the_rows_that_came_first(ledger: Ledger) -> None:
    two = replace(RUN, stop=2)
    ledger.write_block(block([*range(100, 105)], samples=(0, 1)))
    ledger.write_block(block([*range(100, 105)], "again", samples=(0, 1)))
    ledger.write_block(block([*range(103, 110)], "other", samples=(0, 1)))  # overlaps the first
    assert ledger.listing().durable_ranges(0) == {PART.name: [(100, 105), (105, 110)]}
    assert ledger.commit(PART, two, SCHEMA, METADATA)
    ledger.write_block(block([*range(103, 110)], "late", samples=(0, 1)))
    assert ledger.listing().journal == {}
    table = read(ledger)
    assert table["id"].to_pylist() == [row for row in range(100, 110) for _ in range(2)]
    assert table["sample"].to_pylist() == [0, 1] * 10
    assert table["think"].to_pylist() == ["t"] * 10 + ["other"] * 10


@pytest.mark.parametrize("late", [[*range(100, 105)], [103], [*range(102, 108)]])
def test_durable_rows_stay_whatever_ranges_come_later(ledger: Ledger, late: list[int]) -> None:
    """As written by a driver that has lost its lease without knowing."""
    first = [103, *range(105, 110)]
    for rows in ([103], [*range(105, 110)]):
        ledger.write_block(block(rows))
    ledger.write_block(block(late, "late"))
    ledger.write_block(block([row for row in range(100, 105) if row != 103], "rest"))
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    table = read(ledger)
    assert table["id"].to_pylist() == list(range(100, 110))
    kept = dict(zip(table["id"].to_pylist(), table["think"].to_pylist(), strict=True))
    assert {row for row, think in kept.items() if think == "t"} == set(first)


def test_fragments_that_overlap_are_merged_row_by_row(ledger: Ledger) -> None:
    """As left by two drivers that both listed before either wrote."""
    other = Ledger(Storage(ledger.store.url + "-other"))
    ledger.write_block(block([*range(100, 106)]))
    other.write_block(block([*range(103, 110)], "other"))
    [info] = other.store.files()
    ledger.store.put(info.name, other.store.read(info.name))
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert read(ledger)["think"].to_pylist() == ["t"] * 6 + ["other"] * 4


def test_block_across_two_parts_goes_to_both(ledger: Ledger) -> None:
    other = PartRef("en/shard-0.00002.parquet", 110, 112)
    table = pa.concat_tables([block([108, 109]), block([110, 111], part=other)])
    assert ledger.write_block(table) == {PART, other}
    assert ledger.commit(other, RUN, SCHEMA, METADATA)
    assert read(ledger, other)["id"].to_pylist() == [110, 111]


def test_part_is_complete_after_concurrent_commits(ledger: Ledger) -> None:
    rows = list(range(100, 110))
    random.Random(0).shuffle(rows)

    def write_and_commit(row: int) -> None:
        ledger.write_block(block([row]))
        ledger.commit(PART, RUN, SCHEMA, METADATA)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(write_and_commit, rows))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert read(ledger)["id"].to_pylist() == list(range(100, 110))


def test_part_without_all_samples_is_not_finished(ledger: Ledger) -> None:
    ledger.open_run({"sampling.n": 3}, {})
    ledger.write_block(block([*range(100, 110)], samples=(0, 1)))
    with pytest.raises(OutputError, match=r"make 20 traces of 10 rows, not 30 of 10"):
        ledger.commit(PART, replace(RUN, stop=3), SCHEMA, METADATA)
    assert ledger.listing().finished_parts() == frozenset()


@pytest.mark.parametrize(("late", "early"), [((100, 102), (101, 104)), ((103, 110), (101, 104))])
def test_of_fragments_that_overlap_the_one_that_was_there_first_counts(
    ledger: Ledger, late: tuple[int, int], early: tuple[int, int]
) -> None:
    """A writer slept between its listing and its write, and others did its rows."""
    ledger.write_block(block([*range(*early)], "early"))
    time.sleep(0.01)
    sleeper = Ledger(Storage(ledger.store.url))
    sleeper.fragments = lambda *_: []  # type: ignore[method-assign]
    sleeper.write_block(block([*range(*late)], "late"))
    ledger.write_block(block([*range(100, 110)], "rest"))
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    texts = dict(zip(*(read(ledger)[name].to_pylist() for name in ("id", "think")), strict=True))
    assert [texts[row] for row in range(*early)] == ["early"] * 3
    assert all(texts[row] == "late" for row in set(range(*late)) - set(range(*early)))
    assert list(texts) == list(range(100, 110))


def test_nested_shard_names_keep_their_fragments_apart(ledger: Ledger) -> None:
    outer, inner = PartRef("a.00000.parquet", 0, 2), PartRef("a.00000/b.00000.parquet", 0, 2)
    ledger.write_block(block([0], part=outer))
    ledger.write_block(block([0, 1], part=inner))
    assert not ledger.commit(outer, RUN, SCHEMA, METADATA)
    ledger.write_block(block([1], part=outer))
    assert ledger.commit(outer, RUN, SCHEMA, METADATA)
    assert ledger.commit(inner, RUN, SCHEMA, METADATA)


def test_empty_part_becomes_a_file(ledger: Ledger) -> None:
    empty = PartRef("empty.00000.parquet", 0, 0)
    assert ledger.commit(empty, RUN, SCHEMA, METADATA)
    assert read(ledger, empty).num_rows == 0


def test_footer_counts_the_traces(ledger: Ledger) -> None:
    ledger.write_block(block([*range(100, 110)]))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert part_metadata(ledger.store, PART.name)["summary"] == {
        "rows": 10, "traces": 10, "states": {"finished": 10}, "duplicates": 0,
        "prompt_tokens": 50, "think_tokens": 20, "answer_tokens": 10, "carried_tokens": 0,
    }  # fmt: skip


def test_bookkeeping_files_are_not_read_as_data(ledger: Ledger) -> None:
    ledger.open_run({"a": 1}, {})
    ledger.write_block(block([*range(100, 110)]))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    other = PartRef("en/shard-0.00002.parquet", 110, 120)
    ledger.write_block(block([110, 111], part=other))
    assert pq.read_table(ledger.store.root).num_rows == 10


def test_other_settings_are_refused_by_name(ledger: Ledger) -> None:
    settings = {"sampling.temperature": 0.6, "model.path": "m", "sampling.n": 2}
    ledger.open_run(settings, {"ray": "1"})
    ledger.open_run(dict(reversed(settings.items())), {"ray": "2"})
    changed = {**settings, "sampling.temperature": 0.7}
    with pytest.raises(OutputError) as caught:
        ledger.open_run(changed, {})
    assert "sampling.temperature: there 0.6, now 0.7" in str(caught.value)
    assert "model.path" not in str(caught.value)
    ledger.check_run(changed, may_change=["sampling."])
    ledger.check_run({**settings, "sampling.n": 3})
    with pytest.raises(OutputError, match=r"sampling.n: there 2, now 1"):
        ledger.check_run({**settings, "sampling.n": 1})


def test_changed_shards_are_refused_and_new_ones_accepted(ledger: Ledger) -> None:
    shards = [Shard(f"s{i}.parquet", "", 5, 100 + i, "tag") for i in range(3)]
    ledger.record_shards(shards[:2], SCHEMA, "in")
    ledger.check_shards(shards)
    ledger.record_shards(shards[1:], SCHEMA, "in")
    ledger.check_shards(shards)
    changed = [replace(shards[0], size=7), replace(shards[1], tag="x"), shards[2]]
    with pytest.raises(OutputError) as caught:
        ledger.check_shards(changed)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  s0.parquet: size 100, now 7", "  s1.parquet: tag tag, now x"]
    assert "s2" not in str(caught.value)
    assert SHARDS in str(caught.value)


def test_folder_with_other_files_is_refused_and_unchanged(ledger: Ledger) -> None:
    ledger.store.put("thesis.txt", b"x")
    with pytest.raises(OutputError, match=r"is not empty and not the output of a run .*thesis.txt"):
        ledger.open_run({"a": 1}, {})
    assert ledger.manifest() is None


def test_damaged_manifest_is_named(ledger: Ledger) -> None:
    ledger.store.put(MANIFEST, b"{")
    with pytest.raises(OutputError, match=r"manifest.yaml is damaged"):
        ledger.open_run({"a": 1}, {})
