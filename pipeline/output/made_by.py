"""Which engines made the rows of a part: a mark on each trace, then on fragments, then in a footer.

Engines of one run can differ: workers have their own, and a resumed run may have others. All that
decides what a trace says is a setting of the run, and the same for all. But numbers are rounded in
another order on other GPUs, so data is only explained with the engines that made it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import ENGINE_COLUMN

# The key in a fragment's metadata, and in a part's footer.
KEY, ENGINES = b"qwq-engines", "engines"

# Its kind, device, GPU, GPUs that share it, and the versions of its software, by name.
EngineMark = Mapping[str, Any]


def marked(traces: pa.Table, mark: str) -> pa.Table:
    """``traces`` with the ``mark`` of their engine, an `EngineMark` as JSON."""
    return traces.append_column(ENGINE_COLUMN, pa.repeat(pa.scalar(mark, pa.string()), len(traces)))


def with_marks_aside(traces: pa.Table) -> pa.Table:
    """``traces`` with the marks of their engines in the table's metadata, each once."""
    if ENGINE_COLUMN not in traces.column_names:
        return traces
    marks = sorted(pc.unique(traces[ENGINE_COLUMN]).drop_null().to_pylist())
    metadata = {KEY: json.dumps([json.loads(mark) for mark in marks])}
    return traces.drop_columns([ENGINE_COLUMN]).replace_schema_metadata(metadata)


def noting_engines(tables: Iterable[pa.Table], engines: list[EngineMark]) -> Iterator[pa.Table]:
    """``tables`` of fragments; ``engines`` gets the engines that made them, as they are read."""
    for table in tables:
        marks = json.loads((table.schema.metadata or {}).get(KEY, b"[]"))
        engines += [mark for mark in marks if mark not in engines]
        yield table.replace_schema_metadata(None)


def engines_of(footer: Mapping[str, Any]) -> list[EngineMark]:
    """The engines that made the rows of a part.

    The parts of older versions name the software of the driver that wrote them only.
    """
    kind, versions = footer["settings"].get("engine.kind"), footer.get("versions", {})
    marks: list[EngineMark] = footer.get(ENGINES, [{"kind": kind, "versions": versions}])
    return marks


def distinct_engines(footers: Iterable[Mapping[str, Any]]) -> tuple[EngineMark, ...]:
    """The engines that made the rows of parts, each once."""
    engines = list[EngineMark]()
    for footer in footers:
        engines += [mark for mark in engines_of(footer) if mark not in engines]
    return tuple(engines)


def in_words(mark: EngineMark) -> str:
    """An engine on one line, such as vllm, device gpu, tensor_parallel 4; ray 2.60.0."""
    kind, versions = str(mark.get("kind")), mark.get("versions", {})
    more = [f"{name} {v}" for name, v in mark.items() if name not in ("kind", "versions")]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return ", ".join([kind, *more]) + (f"; {software}" if software else "")
