"""What engines found when they started, or why they could not, kept beside the output.

A file for each start outlives the node: on Kubernetes, logs go with their pod.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from pipeline.output.layout import ENGINES, YAML
from pipeline.storage import Storage

# The latest starts are read, not all of a long run on spot nodes.
MOST_STARTS = 100


@dataclass(frozen=True)
class EngineStart:
    """A start of the engine ``name`` on ``host``, which took ``seconds``.

    ``details``: what it found, by name. ``reason``: why it did not start.
    """

    name: str
    host: str
    seconds: float
    at: str
    details: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @property
    def summary(self) -> str:
        """The details as a line."""
        return ", ".join(
            f"{name} {value:,}" if type(value) is int else f"{name} {value}"
            for name, value in self.details.items()
        )


def write(store: Storage, start: EngineStart) -> None:
    """Keep a start."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    text = yaml.safe_dump(asdict(start), sort_keys=False, allow_unicode=True)
    store.put(f"{ENGINES}/{stamp}-{start.name}{YAML}", text.encode())


def read(store: Storage) -> Iterator[EngineStart]:
    """The latest starts, in order of time; files that can't be read are skipped."""
    names = [info.name for info in store.files(ENGINES)]
    for data in store.read_all(names[-MOST_STARTS:]):
        try:
            yield EngineStart(**yaml.safe_load(data))
        except (yaml.YAMLError, TypeError):
            continue
