"""Top-ups and retries in the ledger: each changes its own traces, whoever else writes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.local_disk import ANY_VERSION
from pipeline.output.layout import done_name
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.planning import Pass
from pipeline.storage import Storage
from tests.s3 import S3Server
from tests.unit.output.blocks import METADATA, PART, RUN, SCHEMA, block, read


def test_pass_over_chosen_rows_changes_only_these(ledger: Ledger) -> None:
    two = replace(RUN, stop=2)
    ledger.write_block(block([*range(100, 110)], samples=(0, 1)))
    ledger.commit(PART, two, SCHEMA, METADATA)
    retry = Pass(1, 0, 2, ("truncated",), (("sampling.max_tokens", 99),))
    ledger.write_block(block([107], "new", samples=(1,), spans=[(107, 110)]), 1)
    assert not ledger.commit(PART, retry, SCHEMA, METADATA)
    ledger.write_block(block([103], "new", samples=(0,), spans=[(100, 107)]), 1)
    assert ledger.listing().durable_ranges(1) == {PART.name: [(100, 107), (107, 110)]}
    assert ledger.commit(PART, retry, SCHEMA, METADATA)
    table = read(ledger)
    assert table["id"].to_pylist() == [row for row in range(100, 110) for _ in range(2)]
    assert table["sample"].to_pylist() == [0, 1] * 10
    new = [(r["id"], r["sample"]) for r in table.to_pylist() if r["think"] == "new"]
    assert new == [(103, 0), (107, 1)]
    assert ledger.listing().finished_parts(1) == {PART.name}
    footer = part_metadata(ledger.store, PART.name)
    assert footer["passes"] == [
        {
            "number": 1,
            "states": ["truncated"],
            "foreign": None,
            "changed": {"sampling.max_tokens": 99},
        }
    ]
    assert footer["summary"]["traces"] == 20


def test_pass_merged_again_after_a_crash_gives_the_same_part(ledger: Ledger) -> None:
    ledger.write_block(block([*range(100, 110)]))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    more = Pass(1, 1, 3)
    new = block([*range(100, 110)], "new", samples=(1, 2))
    ledger.write_block(new, 1)
    ledger.commit(PART, more, SCHEMA, METADATA)
    first = read(ledger)
    ledger.store.delete([done_name(PART, 1)])  # as if the driver had died before it wrote the mark
    ledger.write_block(new, 1)
    ledger.commit(PART, more, SCHEMA, METADATA)
    assert read(ledger).equals(first)
    assert first["sample"].to_pylist() == [0, 1, 2] * 10
    assert first["think"].to_pylist() == ["t", "new", "new"] * 10
    assert part_metadata(ledger.store, PART.name)["settings"]["sampling.n"] == 3


def retried(rows: list[int], number: int) -> pa.Table:
    """What the retry ``number`` made of ``rows`` of the whole part."""
    spans = [(row, row + 1) for row in rows]
    table = block(rows, f"retry {number}", spans=spans)
    at = table.column_names.index("attempt")
    attempts = pa.array([number] * len(rows), pa.int32())
    return table.set_column(at, table.schema.field(at), attempts)


def test_a_top_up_whose_mark_is_missing_does_not_undo_a_retry(ledger: Ledger) -> None:
    rows, more, retry = [*range(100, 110)], Pass(1, 1, 2), Pass(2, 0, 2, ("truncated",))
    ledger.write_block(block(rows))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    top_up = block(rows, "more", samples=(1,))
    ledger.write_block(top_up, 1)
    ledger.commit(PART, more, SCHEMA, METADATA)
    ledger.store.delete([done_name(PART, 1)])  # the driver died before it wrote the mark
    ledger.write_block(retried(rows, 2), 2)
    assert ledger.commit(PART, retry, SCHEMA, METADATA)
    ledger.write_block(block(rows, "other", samples=(0, 1)), 1)  # generated again, differently
    before = read(ledger)
    assert ledger.commit(PART, more, SCHEMA, METADATA)
    assert read(ledger).equals(before)
    assert set(before["think"].to_pylist()) == {"more", "retry 2"}
    assert ledger.is_done(PART, 1)


def test_a_top_up_adds_samples_and_replaces_none(ledger: Ledger) -> None:
    rows = [*range(100, 110)]
    ledger.write_block(block(rows))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    ledger.write_block(block(rows, "new", samples=(0, 1)), 1)
    assert ledger.commit(PART, Pass(1, 1, 2), SCHEMA, METADATA)
    assert read(ledger)["think"].to_pylist() == ["t", "new"] * 10


def test_a_second_retry_keeps_the_first_in_the_footer(ledger: Ledger) -> None:
    rows = [*range(100, 110)]
    ledger.write_block(block(rows))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    for number in (1, 2):
        ledger.write_block(retried(rows, number), number)
        assert ledger.commit(PART, Pass(number, 0, 1, ("looped",)), SCHEMA, METADATA)
    footer = part_metadata(ledger.store, PART.name)
    assert [run_pass["number"] for run_pass in footer["passes"]] == [1, 2]
    assert set(read(ledger)["think"].to_pylist()) == {"retry 2"}


class FrozenStorage(Storage):
    """Its writers of parts freeze before they publish, until ``thaw``."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.frozen, self.thaw = threading.Event(), threading.Event()

    @contextmanager
    def writing(self, name: str, over: str | None = ANY_VERSION) -> Iterator[IO[bytes]]:
        with super().writing(name, over) as file:
            yield file
            self.frozen.set()
            assert self.thaw.wait(60)


def test_a_committer_that_was_frozen_does_not_put_an_old_part_back(
    ledger: Ledger, s3: S3Server, tmp_path: Path
) -> None:
    s3.filesystem().makedirs("frozen", exist_ok=True)
    rows = [*range(100, 110)]
    first, second, third = (Pass(number, 0, 1, ("looped",)) for number in (1, 2, 3))
    for url in (ledger.store.url, f"s3://frozen/{tmp_path.name}"):
        heir, store = Ledger(Storage(url)), FrozenStorage(url)
        for run_pass, next_pass in ((RUN, first), (second, third)):
            if not run_pass.number:
                heir.write_block(block(rows))
            else:
                heir.write_block(retried(rows, run_pass.number), run_pass.number)
            store.frozen.clear()
            store.thaw.clear()
            sleeper = threading.Thread(
                target=Ledger(store).commit, args=(PART, run_pass, SCHEMA, METADATA)
            )
            sleeper.start()
            assert store.frozen.wait(60)
            assert heir.commit(PART, run_pass, SCHEMA, METADATA)
            heir.write_block(retried(rows, next_pass.number), next_pass.number)
            assert heir.commit(PART, next_pass, SCHEMA, METADATA)
            heir.open_pass(next_pass)
            heir.close_pass(next_pass)
            store.thaw.set()
            sleeper.join(60)
            with heir.store.open(PART.name) as file:
                assert set(pq.read_table(file)["think"].to_pylist()) == {
                    f"retry {next_pass.number}"
                }, (url, run_pass)


def test_what_a_closed_pass_has_left_is_removed(ledger: Ledger) -> None:
    more = Pass(1, 1, 2)
    ledger.open_pass(more)
    ledger.close_pass(more)
    ledger.write_block(block([103], samples=(1,)), 1)  # a worker that woke too late
    ledger.store.put(done_name(PART, 1), b"")
    ledger.write_block(block([103]))
    ledger.remove_closed(ledger.listing())
    listing = ledger.listing()
    assert (list(listing.journal), list(listing.done)) == ([0], [])
    assert not Path(ledger.store.path("__qwq/passes/00001")).exists()


def test_closed_pass_leaves_no_marks(ledger: Ledger) -> None:
    more = Pass(1, 1, 2)
    ledger.open_pass(more)
    assert ledger.passes(ledger.listing()) == [more]
    ledger.store.put(done_name(PART, 1), b"")
    ledger.close_pass(more)
    listing = ledger.listing()
    assert listing.closed == {1}
    assert listing.finished_parts(1) == frozenset()
