"""Which run wrote a file, and under which names its columns are carried on; no I/O.

A run whose input is the output of another run is its next stage. The columns that each run adds
have the same names in every stage, so the next one carries them on with the stage's number:
``answer`` of the first as ``stage1_answer``, in all stages that follow.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.answers.references import REFERENCES
from pipeline.errors import InputError
from pipeline.planning import Lineage
from pipeline.schema import FOOTER_KEY, OUR_COLUMNS

# Settings in which the parts of one run may differ: a top-up has reached some and others not, and
# older versions did not record how references are read.
VARYING = ("sampling.n", REFERENCES)


@dataclass(frozen=True)
class EarlierRun:
    """The run that wrote a file, by the file's footer.

    ``names``: the run's column name by our name. ``settings``: those that identify it. ``lineage``:
    of its own input.
    """

    names: Mapping[str, str]
    settings: Mapping[str, Any]
    lineage: Lineage

    @classmethod
    def of(cls, footer: pq.FileMetaData) -> "EarlierRun | None":
        """The run that wrote the file with this footer; None if no run did."""
        entries = footer.metadata or {}
        if FOOTER_KEY not in entries:
            return None
        metadata = json.loads(entries[FOOTER_KEY])
        settings = {
            key: value
            for key, value in metadata["settings"].items()
            if value is not None and key not in VARYING
        }
        return cls(metadata["columns"], settings, tuple(metadata.get("lineage", ())))

    @property
    def stage(self) -> int:
        """The number of the run in its chain: 1 if its input was no run's output."""
        return len(self.lineage) + 1

    def carried(self, columns: Iterable[str]) -> dict[str, str]:
        """The names under which the next stage carries those of ``columns`` that the run made.

        Columns to which `output.rename` gave a name of the user's keep that.
        """
        own = set(self.names.values()).intersection(OUR_COLUMNS)
        return {name: stage_name(self.stage, name) for name in columns if name in own}


def stage_name(stage: int, column: str) -> str:
    """The name of a column that the run ``stage`` of a chain made, in all later stages."""
    return f"stage{stage}_{column}"


def carried_columns(stage: int, columns: Iterable[str]) -> dict[str, str]:
    """From the names in the files of run ``stage`` to those of ``columns``, which are carried."""
    return {
        name: carried
        for name in OUR_COLUMNS
        if stage and (carried := stage_name(stage, name)) in set(columns)
    }


def the_run(
    writers: Mapping[str, EarlierRun | None], stage: int | None = None
) -> EarlierRun | None:
    """The one run that wrote all of the files; None if no run wrote any.

    ``writers``: by file name. ``stage``: of the run that has to be it, 0 for none. Raises
    `InputError` if they come from different runs, or only some from a run.
    """
    first: str | None = None
    for name, run in writers.items():
        if first is not None and run != writers[first]:
            raise InputError(
                f"{first} is {_described(writers[first])}, and {name} is {_described(run)}; an "
                "input must come from one run, or from none: give each a run of its own"
            )
        if stage is not None and stage != (0 if run is None else run.stage):
            before = f"run {stage} of a chain" if stage else "no run"
            raise InputError(
                f"{name} is {_described(run)}, but the shards that this run began with come from "
                f"{before}; give it a run of its own, with another output.path"
            )
        first = name if first is None else first
    return None if first is None else writers[first]


def _described(run: EarlierRun | None) -> str:
    if run is None:
        return "not the output of a run"
    return f"output of run {run.stage} of a chain, on the input {run.settings.get('input.path')}"
