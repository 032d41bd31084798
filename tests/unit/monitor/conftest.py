"""A coordinator without a cluster."""

import pytest

from pipeline.monitor import coordinator as module
from pipeline.monitor.coordinator import RunCoordinator
from pipeline.monitor.engine_processes import ProcessAddress
from pipeline.monitor.figures import EnginePool


class NoMetrics:
    """Prometheus needs a cluster."""

    def __init__(self, *_: object) -> None:
        self.sizes = self.done = self.load = lambda *_: None


def address(engine: str = "a", actor: str = "actor", node: str = "node") -> ProcessAddress:
    return ProcessAddress(engine, actor, node, "host", 7, "1")


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> RunCoordinator:
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    return RunCoordinator({"part": 3}, "out", EnginePool())
