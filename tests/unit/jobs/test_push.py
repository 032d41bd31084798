"""Outputs pushed to a stub of the Hugging Face hub, which is killed in the middle, and goes on."""

import types
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import HfFileSystem
from huggingface_hub.utils import _http

from jobs import hub as push_module
from jobs.push import push
from pipeline.cli import main
from pipeline.errors import ConfigError, OutputError, StorageError
from tests.hub import Hub
from tests.hub_answers import TOKEN
from tests.outputs import write_output

NAME, TARGET = "org/name", "hf://datasets/org/name"


@pytest.fixture(autouse=True)
def few_files_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "FILES_A_COMMIT", 2)
    monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda _: None))  # between tries


def quiet(_: str) -> None:
    """Tests print nothing."""


def parts_of(output: str) -> dict[str, bytes]:
    return {f"data/{path.name}": path.read_bytes() for path in Path(output).glob("*.parquet")}


def data_in(hub: Hub) -> dict[str, bytes]:
    return {path: data for path, data in hub.files(NAME).items() if path != "README.md"}


def test_finished_parts_are_pushed_while_the_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    output = write_output(tmp_path, [{"answer": f"{i}"} for i in range(50)], durable=32)
    lines = list[str]()
    first = push(output, TARGET, lines.append)
    assert (first.sent, first.there) == (3, 0)
    assert lines == ["2 of 3 files", "3 of 3 files"]
    assert "new and private" in first.notes[0]
    assert NAME in hub.private
    assert data_in(hub) == parts_of(output)
    card = hub.files(NAME)["README.md"].decode()
    assert "30 traces of 30 rows of 50: the run goes on" in card
    assert yaml.safe_load(card.split("---")[1])["configs"] == [
        {"config_name": "default", "data_files": "data/**/*.parquet"}
    ]
    assert str(tmp_path) not in card
    assert (
        pq.read_table(f"{TARGET.removeprefix('hf://')}/data", filesystem=HfFileSystem()).num_rows
        == 30
    )


def test_repeated_push_sends_nothing_and_reads_nothing_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_output(tmp_path, [{}] * 20)
    push(output, TARGET, quiet)
    uploads, commits = list(hub.uploads), list(hub.repos[NAME])
    monkeypatch.setattr(push_module, "_sha256", None)
    again = push(output, TARGET, quiet)
    assert (again.sent, again.there, again.notes) == (0, 2, ())
    assert (hub.uploads, hub.repos[NAME]) == (uploads, commits)


def test_lost_record_of_hashes_costs_reading_only(hub: Hub, tmp_path: Path) -> None:
    output = write_output(tmp_path, [{}] * 20)
    push(output, TARGET, quiet)
    (tmp_path / "out" / push_module.DIGESTS).write_text("{broken")
    assert push(output, TARGET, quiet).there == 2
    assert len(hub.uploads) == 2


@pytest.mark.parametrize("place", ["dies_at", "dies_after"])
@pytest.mark.parametrize(
    "request_", ["PUT /lfs/", "POST /api/datasets/org/name/commit", "POST /datasets/"]
)
def test_hub_killed_in_the_middle_goes_on_and_has_nothing_twice(
    hub: Hub, tmp_path: Path, place: str, request_: str
) -> None:
    output = write_output(tmp_path, [{"answer": f"{i}"} for i in range(50)])
    seen = list[str]()

    def dies(line: str) -> bool:
        seen.extend([line] if line.startswith(request_) else [])
        return len(seen) == 2

    setattr(hub, place, dies)
    with pytest.raises(StorageError, match="the same command goes on"):
        push(output, TARGET, quiet)
    hub.start()
    push(output, TARGET, quiet)
    assert data_in(hub) == parts_of(output)
    assert len(hub.uploads) == len(set(hub.uploads)) == 5
    added = [path for commit in hub.repos[NAME] for path in commit.added]
    assert sorted(added) == sorted({*parts_of(output), "README.md"})


def test_part_that_a_retry_has_replaced_replaces_the_pushed_one(hub: Hub, tmp_path: Path) -> None:
    output = write_output(tmp_path, [{}] * 20)
    push(output, TARGET, quiet)
    part = tmp_path / "out/s.00001.parquet"
    table = pq.read_table(part).replace_schema_metadata(pq.read_metadata(part).metadata)
    pq.write_table(table, part, compression="none")
    assert push(output, TARGET, quiet).sent == 1
    assert data_in(hub) == parts_of(output)


def test_card_that_people_wrote_stays(hub: Hub, tmp_path: Path) -> None:
    output = write_output(tmp_path, [{}] * 20, durable=12)
    push(output, TARGET, quiet)
    hub.add(NAME, {"README.md": b"mine"})
    write_output(tmp_path, [{}] * 20)
    pushed = push(output, TARGET, quiet)
    assert "README.md of hf://datasets/org/name is not ours, and stays" in pushed.notes[0]
    assert hub.files(NAME)["README.md"] == b"mine"
    assert pushed.sent == 1


def test_data_of_others_is_refused_before_anything_is_sent(hub: Hub, tmp_path: Path) -> None:
    output = write_output(tmp_path, [{}] * 10)
    hub.add(NAME, {"train.parquet": b"x", "notes.txt": b"y"})
    with pytest.raises(OutputError, match=r"readers would mix them: train\.parquet; remove"):
        push(output, TARGET, quiet)
    assert hub.uploads == []


def test_token_without_rights_is_named_and_not_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_output(tmp_path, [{}] * 10)
    wrong = TOKEN[::-1]
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(SystemExit) as caught:
        main(["push", output, TARGET])
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert "set HF_TOKEN to a token that may write to org" in shown.err
    assert wrong not in shown.err + shown.out


@pytest.mark.parametrize(
    "target",
    [
        "org/name",
        "hf://org/name",
        "hf://datasets/org/name@v1",
        "hf://datasets/org/name/x",
        "s3://b",
    ],
)
def test_other_targets_are_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match="write hf://datasets/ORG/NAME"):
        push(str(tmp_path), target, quiet)


def test_an_export_is_pushed_with_its_own_card(hub: Hub, tmp_path: Path) -> None:
    for name, data in {
        "README.md": "card",
        "thinking/train-0.parquet": "a",
        "thinking-jsonl/train-0.jsonl": "b",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(data)
    assert push(str(tmp_path), TARGET, quiet).sent == 2
    assert set(hub.files(NAME)) == {
        "README.md",
        "thinking/train-0.parquet",
        "thinking-jsonl/train-0.jsonl",
    }
    assert push(str(tmp_path), TARGET, quiet).there == 2
    with pytest.raises(OutputError, match=r"push .*/thinking/traces, or of a synthesis"):
        push(str(tmp_path / "thinking"), TARGET, quiet)


def test_output_on_an_object_store_is_pushed(hub: Hub, tmp_path: Path) -> None:
    output, store = write_output(tmp_path, [{}] * 20), "memory://push"
    memory = fsspec.filesystem("memory")
    memory.put(f"{output}/", "/push/", recursive=True)
    assert push(store, TARGET, quiet).sent == 2
    assert push(store, TARGET, quiet).there == 2
    assert data_in(hub) == parts_of(output)
    memory.rm("/push", recursive=True)
