"""Each footer is read once: an earlier run recorded its shards."""

from pathlib import Path

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
    shards, schema = find_shards(str(prompts), ledger.known_shards())
    assert [shard.rows for shard in shards] == [1, 2, 3]
    ledger.record_shards(shards, schema, str(prompts))
    footers_read = list[str]()
    read_footer = source._footer

    def counted(store: Storage, info: object) -> object:
        footers_read.append(info.name)  # type: ignore[attr-defined]
        return read_footer(store, info)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "_footer", counted)
    assert find_shards(str(prompts), ledger.known_shards()) == (shards, schema)
    assert footers_read == []
    write(prompts / "9.parquet", 4, id=1.5, extra="new")
    shards, wider = find_shards(str(prompts), ledger.known_shards())
    assert footers_read == ["9.parquet"]
    assert [shard.rows for shard in shards] == [1, 2, 3, 4]
    assert wider == pa.schema([("prompt", "string"), ("id", "double"), ("extra", "string")])
    # A changed shard, or one of another input, may have been the only one with some column.
    write(prompts / "1.parquet", 7)
    assert [s.rows for s in find_shards(str(prompts), ledger.known_shards())[0]] == [1, 7, 3, 4]
    assert len(footers_read) == 1 + 4
    moved = prompts.rename(tmp_path / "moved")
    (moved / "1.parquet").unlink()
    find_shards(str(moved), ledger.known_shards())
    assert len(footers_read) == 1 + 4 + 3


def test_shards_removed_from_the_shards_file_are_read_again(tmp_path: Path) -> None:
    prompts, ledger = tmp_path / "prompts", Ledger(Storage(str(tmp_path / "out")))
    prompts.mkdir()
    write(prompts / "a.parquet", 1)
    write(prompts / "b.parquet", 2, id="text")
    shards, schema = find_shards(str(prompts))
    ledger.record_shards(shards, schema, str(prompts))
    write(prompts / "b.parquet", 2, id=7)
    shards, schema = find_shards(str(prompts), ledger.known_shards())
    with pytest.raises(OutputError, match=r"remove their lines from .*shards\.yaml"):
        ledger.check_shards(shards)
    lines = Path(ledger.store.path(SHARDS)).read_text().splitlines()
    kept = [line for line in lines if not line.startswith("b.parquet")]
    ledger.store.put(SHARDS, "\n".join(kept).encode())
    shards, schema = find_shards(str(prompts), ledger.known_shards())
    ledger.check_shards(shards)
    assert schema.field("id").type == pa.int64()


def test_footer_of_any_size_is_read_and_a_broken_file_is_named(tmp_path: Path) -> None:
    wide = {f"{'column' * 20}{i}": i for i in range(600)}
    write(tmp_path / "a.parquet", 2, **wide)
    with (tmp_path / "a.parquet").open("rb") as file:
        file.seek(-8, 2)
        assert int.from_bytes(file.read(4), "little") > source.FOOTER_BYTES
    [shard], schema = find_shards(str(tmp_path))
    assert (shard.rows, len(schema)) == (2, 601)
    for bad in (b"", b"PAR1", b"no Parquet file at all", b"\xff" * 100, b"PAR1 torn PAR1"):
        (tmp_path / "b.parquet").write_bytes(bad)
        with pytest.raises(InputError, match=r"b\.parquet is not a readable Parquet file"):
            find_shards(str(tmp_path))
