"""The names of an output location: what is written is found again, other names are passed over."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.output.layout import (
    checkpoint_name,
    fragment_name,
    parse_journal_name,
    contiguous,
    parse_listing,
)
from pipeline.planning import PartRef
from pipeline.storage import FileInfo

NAMES = st.text("abc./-_0", min_size=1).map(lambda name: f"{name.strip('/')}x.00000.parquet")


@given(NAMES, st.integers(0, 99), st.integers(0, 99), st.integers(0, 3))
def test_names_of_the_journal_are_read_back(name: str, start: int, rows: int, number: int) -> None:
    part = PartRef(name, start, start + rows)
    assert PartRef.parse(str(part)) == part
    fragment = FileInfo(fragment_name(part, start, start + rows, number), 1, "t")
    found = parse_journal_name(fragment)
    assert found is not None
    assert (found.part, found.pass_number, found.rows) == (name, number, (start, start + rows))
    found = parse_journal_name(FileInfo(checkpoint_name(part, "1f3c", number), 1, "t"))
    assert found is not None
    assert (found.part, found.pass_number, found.rows, found.engine) == (name, number, None, "1f3c")


def test_contents_are_sorted_by_pass() -> None:
    names = [
        "a.00000.parquet", "en/b.00000.parquet", "__qwq/manifest.yaml", "__qwq/lease/00000001.yaml",
        "__qwq/journal/c.00000/0-4.rows", "__qwq/journal/c.00000/8-9.rows",
        "__qwq/running/c.00000/1f3c.running", "__qwq/journal/a.00000/0-4.2.rows",
        "__qwq/passes/00001.yaml", "__qwq/passes/00001.closed", "__qwq/passes/00002.yaml",
        "__qwq/passes/00002/en/b.00000.done",
    ]  # fmt: skip
    found = parse_listing(FileInfo(name, 1, "t") for name in names)
    assert found.finished_parts() == {"a.00000.parquet", "en/b.00000.parquet"}
    assert found.durable_ranges(0) == {"c.00000.parquet": [(0, 4), (8, 9)]}
    assert found.durable_ranges(2) == {"a.00000.parquet": [(0, 4)]}
    assert (found.passes, found.closed) == ({1, 2}, {1})
    assert found.finished_parts(2) == {"en/b.00000.parquet"}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), unique_by=lambda span: span[0]))
def test_runs_break_where_something_is_missing(found: list[tuple[int, int]]) -> None:
    spans = [(start, start + 1) for start, count in sorted(found) for _ in range(count)]
    pieces = contiguous(spans)
    assert [i for low, high in pieces for i in range(low, high)] == list(range(len(spans)))
    for low, high in pieces:
        rows = sorted({start for start, _ in spans[low:high]})
        assert rows == list(range(rows[0], rows[-1] + 1))
    for (_, end), (begin, _) in pairwise(pieces):
        assert spans[end - 1][1] < spans[begin][0]
