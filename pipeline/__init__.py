"""A distributed batch pipeline for the reasoning models QwQ-32B and QwQ-32B-Preview.

    import pipeline

    config = pipeline.load_config("configs/demo.yaml")
    summary = pipeline.run(config)
    for trace in pipeline.read_traces(config.output.path, state="finished"):
        print(trace["prompt"], trace["answer"])

API.md describes all names. Each is imported when it is first used, so ``import pipeline`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.api import RunPlan, estimate, plan, retry, run, work
    from pipeline.config.load import load_config, parse_config
    from pipeline.config.run_config import RunConfig
    from pipeline.errors import QwqBatchError
    from pipeline.insight.estimate import Estimate
    from pipeline.insight.status import Status, status
    from pipeline.output.reader import read_traces
    from pipeline.output.summary import Summary

__all__ = [
    "Estimate",
    "QwqBatchError",
    "RunConfig",
    "RunPlan",
    "Status",
    "Summary",
    "estimate",
    "load_config",
    "parse_config",
    "plan",
    "read_traces",
    "retry",
    "run",
    "status",
    "work",
]

_HOMES = {
    "pipeline.api": ("RunPlan", "estimate", "plan", "retry", "run", "work"),
    "pipeline.config.load": ("load_config", "parse_config"),
    "pipeline.config.run_config": ("RunConfig",),
    "pipeline.errors": ("QwqBatchError",),
    "pipeline.insight.estimate": ("Estimate",),
    "pipeline.insight.status": ("Status", "status"),
    "pipeline.output.reader": ("read_traces",),
    "pipeline.output.summary": ("Summary",),
}

if not TYPE_CHECKING:  # type checkers see the imports above, and so refuse unknown names

    def __getattr__(name: str) -> object:
        """Import a public name from its module."""
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(module), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
