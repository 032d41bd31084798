"""Results: kept as JSON, shown as Markdown."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.markdown import RIGHT, table_lines
from pipeline.output.manifest import software_versions


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median and, for several values, their range."""
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "–"
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}}–{high:{form}})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    return "\n".join(table_lines(head, rows, RIGHT))


def keep(folder: Path, name: str, table: str, figures: Mapping[str, Any]) -> None:
    """Print ``table``, and write it to ``folder`` with its ``figures``, machine and versions."""
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "platform": platform.platform()},
        "versions": software_versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**about, **figures}, indent=1) + "\n")
    (folder / f"{name}.md").write_text(table + "\n")
    print(table)
