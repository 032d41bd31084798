"""Each footer is read once: an earlier run recorded its shards."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, OutputError
from pipeline.input import shards as source
from pipeline.input.shards import find_shards
from pipeline.output.layout import SHARDS
from pipeline.output.ledger import Ledger
from pipeline.storage import Storage


def write(path: Path, rows: int, **more: object) -> None:
    pq.write_table(
        pa.table({"prompt": ["x"] * rows, **{k: [v] * rows for k, v in more.items()}}), path
    )


def test_footers_of_known_shards_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, ledger = tmp_path / "prompts", Ledger(Storage(str(tmp_path / "out")))
    prompts.mkdir()
    for i in range(3):
        write(prompts / f"{i}.parquet", i + 1, id=i)
    found = find_shards(str(prompts), ledger.known_shards())
    assert [shard.rows for shard in found.shards] == [1, 2, 3]
    ledger.record_shards(found.shards, found.schema, str(prompts))
    footers_read = list[str]()
    read_footer = source._footer

    def counted(store: Storage, info: object) -> object:
        footers_read.append(info.name)  # type: ignore[attr-defined]
        return read_footer(store, info)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "_footer", counted)
    assert find_shards(str(prompts), ledger.known_shards()) == found
    assert footers_read == []
    write(prompts / "9.parquet", 4)
    more = find_shards(str(prompts), ledger.known_shards())
    assert footers_read == ["9.parquet"]
    assert [shard.rows for shard in more.shards] == [1, 2, 3, 4]
    assert more.schema == found.schema
    write(prompts / "1.parquet", 7)
    changed = find_shards(str(prompts), ledger.known_shards()).shards
    assert [shard.rows for shard in changed] == [1, 7, 3, 4]
    assert footers_read[1:] == ["1.parquet", "9.parquet"]
    moved = prompts.rename(tmp_path / "moved")
    find_shards(str(moved), ledger.known_shards())
    assert len(footers_read) == 3 + 4


def test_a_copied_shard_is_the_same_and_a_rewritten_one_is_not(tmp_path: Path) -> None:
    prompts, ledger = tmp_path / "prompts", Ledger(Storage(str(tmp_path / "out")))
    prompts.mkdir()
    write(prompts / "a.parquet", 3, reference="10")
    write(prompts / "b.parquet", 3, reference="10")
    found = find_shards(str(prompts))
    ledger.record_shards(found.shards, found.schema, str(prompts))
    os.utime(prompts / "a.parquet", (1, 1))
    known, touched = ledger.known_shards(), find_shards(str(prompts)).shards
    ledger.check_shards(touched)
    assert [shard.name for shard in known.touched(touched)] == ["a.parquet"]
    copy = Path(shutil.copytree(prompts, tmp_path / "copy"))
    assert known.are_among(find_shards(str(copy)).shards)
    (copy / "a.parquet").unlink()
    assert not known.are_among(find_shards(str(copy)).shards)
    # A value in the middle: neither the size nor the statistics of the footer change.
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    rows = pa.table({"prompt": ["x"] * 3, "reference": ["10", "11", "12"]})
    pq.write_table(rows, prompts / "b.parquet", **plain)
    first = find_shards(str(prompts))
    ledger.record_shards(first.shards, first.schema, str(prompts))
    rows = pa.table({"prompt": ["x"] * 3, "reference": ["10", "10", "12"]})
    pq.write_table(rows, prompts / "b.parquet", **plain)
    rewritten = find_shards(str(prompts)).shards
    assert rewritten[1].size == first.shards[1].size
    with pytest.raises(
        OutputError, match=r"b\.parquet: tag (?s:.*)remove their lines from .*shards"
    ):
        ledger.check_shards(rewritten)
    lines = Path(ledger.store.path(SHARDS)).read_text().splitlines()
    kept = [line for line in lines if not line.startswith("b.parquet")]
    ledger.store.put(SHARDS, "\n".join(kept).encode())
    ledger.check_shards(find_shards(str(prompts), ledger.known_shards()).shards)


def test_footer_of_any_size_is_read_and_a_broken_file_is_named(tmp_path: Path) -> None:
    wide = {f"{'column' * 20}{i}": i for i in range(600)}
    write(tmp_path / "a.parquet", 2, **wide)
    with (tmp_path / "a.parquet").open("rb") as file:
        file.seek(-8, 2)
        assert int.from_bytes(file.read(4), "little") > source.FOOTER_BYTES
    found = find_shards(str(tmp_path))
    assert ([shard.rows for shard in found.shards], len(found.schema)) == ([2], 601)
    for bad in (b"", b"PAR1", b"no Parquet file at all", b"\xff" * 100, b"PAR1 torn PAR1"):
        (tmp_path / "b.parquet").write_bytes(bad)
        with pytest.raises(InputError, match=r"b\.parquet is not a readable Parquet file"):
            find_shards(str(tmp_path))
