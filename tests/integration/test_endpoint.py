"""Runs whose engine is elsewhere: small servers in the test's process, one of which dies."""

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.errors import ModelError, OutputError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from pipeline.insight.doctor import examine
from pipeline.output import engine_starts
from pipeline.storage import Storage
from tests.completions_server import CompletionsServer, servers
from tests.conftest import MakeConfig, write_shards

ROWS = 60


def endpoint(make_config: MakeConfig, *running: CompletionsServer, **more: Any) -> RunConfig:
    urls = [one.url for one in running]
    return make_config(
        engine={"kind": "endpoint", "endpoint": {"urls": urls, "slots": 8, **more}},
        answer={"format": "boxed"},
    )


def test_dead_server_of_two_loses_no_row_and_a_run_continues_on_other_servers(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [ROWS])
    text = "".join(f"Step {i}.\n" for i in range(30)) + "</think>\n\n\\boxed{42}"
    with servers(3, text) as [first, second, third]:
        for one in (first, second):
            one.seconds_a_piece = 0.02
        config = endpoint(make_config, first, second)
        lines = list(preview.plan_lines(prepare(config)))
        assert f"servers   {first.url}, {second.url}, 8 requests each at most" in lines
        findings = list(map(str, examine(config)))
        served = f"ok        {first.url}: vLLM 0.32.0, qwq (/model), 8,192 tokens"
        assert served in findings
        assert not [finding for finding in findings if finding.startswith("error")]
        third.kill()
        findings = list(map(str, examine(endpoint(make_config, first, third))))
        assert [f for f in findings if f.startswith(f"warning   {third.url} can't be reached")]
        third.start()

        def kill_when_busy() -> None:
            while first.running < 4:
                time.sleep(0.01)
            first.kill()

        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        summary = flow.run(config)
        killer.join()
        assert summary.is_complete
        rows = pq.read_table(config.output.path).to_pylist()
        assert [row["id"] for row in rows] == list(range(ROWS))
        assert {(row["state"], row["parsed"]) for row in rows} == {("finished", "42")}
        whole = len(first.token_ids)
        assert {row["think_tokens"] + row["answer_tokens"] for row in rows} == {whole}
        starts = [start.details for start in engine_starts.read(Storage(config.output.path))]
        assert any(second.url in details for details in starts)
        manifest = prepare(config).ledger.manifest()
        assert manifest is not None
        assert manifest["settings"]["engine.kind"] == "endpoint"
        found = {k: v for k, v in manifest["settings"].items() if k.startswith("engine.endpoint")}
        assert found == {"engine.endpoint.model": "qwq"}, "and no address"

        write_shards(tmp_path / "in", [ROWS, 4])
        assert flow.run(endpoint(make_config, third)).is_complete
        assert len(third.requests) == 4
        assert prepare(endpoint(make_config, third, model="qwq")).plan.rows_todo == 0
        with pytest.raises(OutputError, match=r"engine\.endpoint\.model: there 'qwq', now 'other'"):
            prepare(endpoint(make_config, third, model="other"))
        third.names = ["other"]
        write_shards(tmp_path / "in", [ROWS, 4, 1])
        with pytest.raises(ModelError, match="serves other, and not qwq"):
            flow.run(endpoint(make_config, third))


def test_servers_that_can_not_work_end_the_run_with_what_to_do(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [4])
    with servers(1) as [server]:
        server.key = "a key"
        config = endpoint(make_config, server)
        error = f"{server.url} answers 401: "
        assert [finding for finding in map(str, examine(config)) if error in finding]
        with pytest.raises(ModelError, match=r"answers 401: .*VLLM_API_KEY is not set"):
            flow.run(config)
