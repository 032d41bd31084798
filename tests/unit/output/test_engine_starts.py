"""The starts of engines are kept beside the output, and `status` tells them."""

from pathlib import Path

from pipeline.insight.status import status
from pipeline.output import engine_starts
from pipeline.output.engine_starts import MOST_STARTS, EngineStart
from pipeline.output.layout import ENGINES
from pipeline.storage import Storage
from tests.outputs import write_output

FOUND = {"KV cache tokens": 901_436, "async scheduling": True, "attention": "FLASH_ATTN"}


def of(name: str, host: str, reason: str | None = None) -> EngineStart:
    found = {} if reason else FOUND
    return EngineStart(name, host, 90.5, "2026-11-29T12:00:00+00:00", found, reason)


def test_starts_are_read_back_in_order_and_torn_ones_are_skipped(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    starts = [of("a", "node-1"), of("b", "node-2", "CUDA out of memory: 2 > 1\nlower it")]
    for start in starts:
        engine_starts.write(store, start)
    store.put(f"{ENGINES}/2026.yaml", b"name: [")
    store.put(f"{ENGINES}/2027.yaml", b"other: 1")
    assert list(engine_starts.read(store)) == starts


def test_only_the_latest_are_read(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    for number in range(MOST_STARTS + 2):
        engine_starts.write(store, of(str(number), "node-1"))
    assert next(engine_starts.read(store)).name == "2"


def test_status_tells_engines_that_are_alike_together_and_why_others_did_not_start(
    tmp_path: Path,
) -> None:
    url = write_output(tmp_path, [{"answer": "1"}])
    store = Storage(url)
    for start in (of("a", "node-1"), of("b", "node-2"), *[of("c", "node-3", "no GPU\nlook")] * 2):
        engine_starts.write(store, start)
    lines = list(status(url).lines())
    assert (
        "started    2 x KV cache tokens 901,436, async scheduling True, attention FLASH_ATTN"
        in lines
    )
    at = "2026-11-29T12:00:00+00:00"
    assert f"no start   2 x on node-3, the last at {at}: no GPU\n           look" in lines
    assert len(status(url).to_json()["engine_starts"]) == 4
