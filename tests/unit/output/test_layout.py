"""File names of an output location: written names parse back, other names are ignored."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local_disk import FileInfo
from pipeline.output.layout import (
    checkpoint_name,
    contiguous,
    fragment_name,
    parse_journal_name,
    parse_listing,
)
from pipeline.planning import PartRef

NAMES = st.text("abc./-_0", min_size=1).map(lambda name: f"{name.strip('/')}x.00000.parquet")


@given(NAMES, st.integers(0, 99), st.integers(0, 99), st.integers(0, 3))
def test_journal_names_parse_back(name: str, start: int, rows: int, number: int) -> None:
    part = PartRef(name, start, start + rows)
    assert PartRef.parse(str(part)) == part
    fragment = FileInfo(fragment_name(part, start, start + rows, number), 1, "t")
    entry = parse_journal_name(fragment)
    assert entry is not None
    assert (entry.part, entry.pass_number, entry.rows) == (name, number, (start, start + rows))
    entry = parse_journal_name(FileInfo(checkpoint_name(part, "1f3c", number), 1, "t"))
    assert entry is not None
    assert (entry.part, entry.pass_number, entry.rows, entry.engine) == (name, number, None, "1f3c")


@pytest.mark.parametrize(
    "name",
    [
        "journal/c.00000/._0-4.rows", "journal/c.00000/0-4 (1).rows", "journal/c.00000/0-4.rows.tmp",
        "journal/c.00000/0-4 (conflicted copy).rows", "journal/c.00000/0-x.rows",
        "journal/c.00000/0-4.1.2.rows", "journal/c.00000/.rows", "running/c.00000/._1f3c.running",
        "running/c.00000/1f3c (1).running", "passes/._00001.yaml", "passes/00001 (1).yaml",
        "passes/00001 (1).closed", "passes/x/c.00000.done", "passes/00001/c.00000.tmp",
        "journal/c.00000/1f3c.running", "running/c.00000/0-4.rows", "passes/00001.done",
        "record/part.parquet", "old/c.00000/0-4.rows", "old/c.00000/1f3c.running",
    ],
)  # fmt: skip
def test_what_other_programs_leave_is_ignored(name: str) -> None:
    listing = parse_listing([FileInfo(f"__qwq/{name}", 1, "t")])
    assert listing == parse_listing([])


def test_listing_is_sorted_by_pass() -> None:
    names = [
        "a.00000.parquet", "en/b.00000.parquet", "__qwq/manifest.yaml", "__qwq/lease/00000001.yaml",
        "__qwq/journal/c.00000/0-4.rows", "__qwq/journal/c.00000/8-9.rows",
        "__qwq/running/c.00000/1f3c.running", "__qwq/journal/a.00000/0-4.2.rows",
        "__qwq/passes/00001.yaml", "__qwq/passes/00001.closed", "__qwq/passes/00002.yaml",
        "__qwq/passes/00002/en/b.00000.done",
    ]  # fmt: skip
    listing = parse_listing(FileInfo(name, 1, "t") for name in names)
    assert listing.finished_parts() == {"a.00000.parquet", "en/b.00000.parquet"}
    assert listing.durable_ranges(0) == {"c.00000.parquet": [(0, 4), (8, 9)]}
    assert listing.durable_ranges(2) == {"a.00000.parquet": [(0, 4)]}
    assert (listing.passes, listing.closed) == ({1, 2}, {1})
    assert listing.finished_parts(2) == {"en/b.00000.parquet"}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), unique_by=lambda span: span[0]))
def test_contiguous_pieces_end_where_rows_are_missing(rows: list[tuple[int, int]]) -> None:
    spans = [(start, start + 1) for start, count in sorted(rows) for _ in range(count)]
    pieces = contiguous(spans)
    assert [i for low, high in pieces for i in range(low, high)] == list(range(len(spans)))
    for low, high in pieces:
        starts = sorted({start for start, _ in spans[low:high]})
        assert starts == list(range(starts[0], starts[-1] + 1))
    for (_, end), (begin, _) in pairwise(pieces):
        assert spans[end - 1][1] < spans[begin][0]


def test_only_parquet_files_beside_the_bookkeeping_are_parts() -> None:
    names = ["a.00000.parquet", "README.md", "en/._b.00000.parquet.tmp", "__qwq/x.parquet"]
    listing = parse_listing(FileInfo(name, 1, "t") for name in names)
    assert listing.finished_parts() == {"a.00000.parquet"}
