"""Which engines run over several nodes, and what vLLM and Ray are asked for then."""

from typing import Any

import pytest
import ray

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines.vllm_arguments import BACKEND, engine_arguments
from pipeline.errors import ConfigError
from pipeline.execution.cluster import _require_resources
from pipeline.execution.context_tiers import make_context_tiers
from pipeline.execution.placement import (
    EnginePlacements,
    engines_with_room,
    fitted_to_cluster,
    spans_nodes,
)
from pipeline.execution.work import refuse_unshared
from pipeline.prompts.tokenizer import load_model_config

FORCED = {"vllm": {BACKEND: "ray"}}
BOUND = {"vllm": {BACKEND: "mp"}}
CPU = {"device": "cpu"}


def config_of(**engine: Any) -> RunConfig:
    return parse_config(
        {"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
         "engine": engine}
    )  # fmt: skip


def nodes_of(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """A cluster of nodes with so many GPUs each, and as many CPUs; and one that has been lost."""
    nodes = [{"Alive": True, "Resources": {"GPU": n, "CPU": n} if n else {}} for n in sizes]
    lost = {"Alive": False, "Resources": {"GPU": 64, "CPU": 64}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, lost])


@pytest.mark.parametrize(
    ("engine", "sizes", "over_nodes"),
    [
        ({"tensor_parallel": 4}, [4, 4], False),
        ({"tensor_parallel": 8}, [4, 4], True),
        ({"tensor_parallel": 4, "pipeline_parallel": 2}, [4, 4], True),
        ({"tensor_parallel": 4, "pipeline_parallel": 2}, [8, 4], False),
        ({"tensor_parallel": 8, **BOUND}, [4, 4], False),
        ({"tensor_parallel": 4, **FORCED}, [4, 4], True),
        ({"tensor_parallel": 8}, [0, 0], False),  # nodes that are to come may be large enough
        ({"tensor_parallel": 8, **FORCED}, [], True),
        ({"tensor_parallel": 8, **CPU}, [4, 4], False),
    ],
)
def test_engine_takes_several_nodes_where_none_has_enough_gpus_or_where_told(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any], sizes: list[int], over_nodes: bool
) -> None:
    nodes_of(monkeypatch, *sizes)
    config = fitted_to_cluster(config_of(**engine))
    assert spans_nodes(config.engine) == over_nodes
    arguments = engine_arguments(config)
    assert arguments[BACKEND] == ("ray" if over_nodes else "mp")
    assert arguments["tensor_parallel_size"] == engine["tensor_parallel"]
    assert arguments["pipeline_parallel_size"] == engine.get("pipeline_parallel", 1)
    asked = EnginePlacements(config.engine).options
    if over_nodes:
        assert callable(asked.pop("ray_remote_args_fn"))
        assert asked == {"num_cpus": 0, "num_gpus": 0}
    else:
        kind = "num_cpus" if engine.get("device") == "cpu" else "num_gpus"
        assert asked == {kind: config.engine.ranks}


def test_one_rank_is_left_to_vllm() -> None:
    assert BACKEND not in engine_arguments(config_of())


@pytest.mark.parametrize(
    ("engine", "sizes", "room"),
    [
        ({"tensor_parallel": 4}, [8, 4, 3], 3),
        ({"tensor_parallel": 8, **BOUND}, [7, 7], 0),
        ({"tensor_parallel": 8}, [7, 7], 1),
        ({"tensor_parallel": 8}, [], 0),
        ({"tensor_parallel": 2, **CPU}, [3, 3], 2),
    ],
)
def test_room_is_counted_as_engines_are_placed(
    engine: dict[str, Any], sizes: list[int], room: int
) -> None:
    assert engines_with_room(config_of(**engine).engine, sizes) == room


def test_too_little_room_is_refused_on_this_machine_and_waited_for_in_a_cluster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes_of(monkeypatch, 3, 3)
    engine = config_of(tensor_parallel=2, replicas=3).engine
    with pytest.raises(ConfigError, match=r"of 2 GPUs each .*, and this machine has 6"):
        _require_resources(engine, "local")
    _require_resources(engine, "10.0.0.1:6379")
    [warned] = caplog.messages
    assert "the nodes have 3, 3: there is room for 2 at present" in warned
    assert f"engine.vllm.{BACKEND}=ray lets an engine take GPUs of several nodes" in warned
    _require_resources(config_of(tensor_parallel=2, replicas=3, **FORCED).engine, "10.0.0.1:6379")
    assert caplog.messages == [warned]


def test_rows_without_an_engine_take_no_gpu_whatever_the_engines_take() -> None:
    config = config_of(tensor_parallel=8, pipeline_parallel=2, context="auto", **FORCED)
    none = (
        make_context_tiers(config, load_model_config("qwq-nano", None))[-1].applied(config).engine
    )
    assert EnginePlacements(none).options == {"num_cpus": 1}


def test_range_of_engines_needs_room_for_the_least_of_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes_of(monkeypatch, 4)
    _require_resources(config_of(tensor_parallel=2, replicas=[2, 8]).engine, "local")
    engine = config_of(tensor_parallel=2, replicas=[3, 8]).engine
    with pytest.raises(ConfigError, match=r"engine\.replicas is at least 3, of 2 GPUs each"):
        _require_resources(engine, "local")
    assert not caplog.messages
    _require_resources(engine, "10.0.0.1:6379")
    assert "there is room for 2 at present" in caplog.text


def test_range_of_engines_that_take_several_nodes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their placement groups keep their GPUs to the end, so nobody could have those of idle ones."""
    nodes_of(monkeypatch, 4, 4)
    for engine in ({"tensor_parallel": 8}, {"tensor_parallel": 4, **FORCED}):
        with pytest.raises(ConfigError, match=r"1 to 2: an engine of \d GPUs takes those of"):
            fitted_to_cluster(config_of(replicas=[1, 2], **engine))
    config = config_of(replicas=[1, 2], tensor_parallel=4)
    assert fitted_to_cluster(config) == config


def test_worker_refuses_a_range_of_engines() -> None:
    """It would claim rows for engines that are not there, and keep them from other workers."""
    with pytest.raises(
        ConfigError, match=r"engine\.replicas: a range is not possible with several"
    ):
        refuse_unshared(config_of(replicas=[1, 2]))
    refuse_unshared(config_of(replicas=2))
