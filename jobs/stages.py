"""Several stages, each a run or a job of its own, in order.

    qwq-batch stages configs/math-recipe.yaml

A file lists the stages. Each has a name, which is its folder below ``folder``, a command, and the
sections of that command's configuration; ``reads`` names the earlier stage whose results are its
input. ``settings`` are those of all stages, unless a stage has its own. Each stage resumes by
itself, so the same command again goes on where it stopped.

    folder: out/math
    settings:
      model: {path: qwq-nano}
    stages:
    - name: samples
      command: run
      input: {path: seeds}
      sampling: {n: 4}
    - name: judged
      command: judge
      reads: samples
      judge: {rubric: Is the answer right?, verdicts: [right, wrong]}

It is a list, and no workflow engine: the first stage that fails or reaches a limit ends all.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

import pipeline
from jobs.job import Job, StageKind
from jobs.markdown import table_lines
from pipeline import RunConfig, console
from pipeline.config.load import apply_override, parse_as, read_yaml
from pipeline.config.locations import Location
from pipeline.config.section import Section
from pipeline.errors import ConfigError, OutputError, QwqBatchError
from pipeline.output.ledger import Ledger
from pipeline.printing import print_text
from pipeline.registry import Registry, did_you_mean
from pipeline.storage import Storage

KINDS = Registry[StageKind](
    "command",
    {
        "run": "jobs.job:RUN",
        "label": "jobs.label:STAGE",
        "judge": "jobs.judge:STAGE",
        "synthesize": "jobs.synthesize:STAGE",
        "export": "jobs.export:STAGE",
    },
)
# In the folder of the stages: their names and where their traces are, for `status` and `report`.
LIST = "stages.json"
SETTINGS = "settings"


class StageLine(Section, extra="allow"):
    """One stage as the file has it; what else it has are sections of its command."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    command: str
    reads: str | None = None


class StagesFile(Section):
    """The file."""

    folder: Location
    settings: dict[str, Any] = Field(default_factory=dict)
    stages: list[StageLine] = Field(min_length=1)


@dataclass(frozen=True)
class Stage:
    """One stage, checked. ``config``: of its command. ``reads``: the stage whose results it gets."""

    name: str
    command: str
    kind: StageKind
    config: RunConfig
    reads: "Stage | None"

    @property
    def results(self) -> str:
        """The folder that later stages read."""
        return f"{self.config.output.path}/{self.kind.results}".rstrip("/")

    @property
    def run(self) -> RunConfig:
        """The run that generates."""
        return self.config.run if isinstance(self.config, Job) else self.config

    @property
    def has_input(self) -> bool:
        """Whether the stage that it reads has results."""
        return self.reads is None or Storage(self.reads.results).is_folder()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors say which stage they are of."""
        try:
            yield
        except QwqBatchError:
            console.warn(f"stage {self.name} ({self.command}) did not end well:")
            raise


@dataclass(frozen=True)
class Stages:
    """All stages of a file, in order, in ``folder``."""

    folder: str
    stages: tuple[Stage, ...]

    def run(self) -> int:
        """Run each stage to its end; the exit code of the first that has another than 0.

        Raises what the stages raise.
        """
        self._write_list()
        for stage in self.stages:
            print_text(f"\n== stage {stage.name}: {stage.command}")
            with stage.named():
                if code := stage.kind.run(stage.config):
                    return code
        print_text("")
        console.print_lines(self.table())
        return 0

    def plan_lines(self) -> Iterator[str]:
        """What each stage would run."""
        for stage in self.stages:
            yield f"== stage {stage.name}: {stage.command}, into {stage.config.output.path}"
            if not stage.has_input:
                assert stage.reads is not None
                yield f"   it begins when {stage.reads.name} has results"
            elif not stage.kind.generates:
                yield f"   reads {stage.config.input.path}; generates nothing"
            else:
                with stage.named():
                    yield from pipeline.plan(stage.run).lines()

    def estimates(self, rows: int) -> Iterator[tuple[Stage, "pipeline.Estimate | None"]]:
        """Of each stage that generates: its estimate; None if it has no input yet.

        ``rows``: of each pilot.
        """
        for stage in self.stages:
            if stage.kind.generates:
                with stage.named():
                    yield stage, pipeline.estimate(stage.run, rows) if stage.has_input else None

    def table(self) -> Iterator[str]:
        """What went into each stage and came out of it, as Markdown."""
        head = ["stage", "command", "rows in", "results", "tokens", "tokens a result"]
        yield from table_lines(head, map(_cells, self.stages))

    def _write_list(self) -> None:
        """Raises `OutputError` if the folder itself is the output of a run."""
        store = Storage(self.folder)
        if Ledger(store).manifest() is not None:
            raise OutputError(f"folder {self.folder} is the output of a run; choose another folder")
        traces = {
            stage.name: stage.run.output.path for stage in self.stages if stage.kind.generates
        }
        listed = [{"name": name, "traces": path} for name, path in traces.items()]
        store.put(LIST, (json.dumps(listed, indent=2) + "\n").encode())


def _cells(stage: Stage) -> list[str]:
    outcome = stage.kind.outcome(stage.config)
    each = f"{outcome.tokens / outcome.results:,.0f}" if outcome.results and outcome.tokens else "–"
    numbers = f"{outcome.rows:,}", f"{outcome.results:,}", f"{outcome.tokens:,}"
    return [stage.name, stage.command, *numbers, each]


def load_stages(path: str, overrides: Sequence[str] = ()) -> Stages:
    """The stages that a YAML file lists.

    ``overrides``: ``NAME.key=value`` of a stage, ``settings.key=value``, or ``folder=value``.
    Raises `ConfigError` that names the stage and every wrong key.
    """
    try:
        file = StagesFile.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join([f"{path} is not a list of stages:", *lines])) from None
    folder, lines_by_name = file.folder, {line.name: line for line in file.stages}
    sections = {SETTINGS: file.settings} | {
        name: dict(line.model_extra or {}) for name, line in lines_by_name.items()
    }
    if len(sections) <= len(file.stages):
        raise ConfigError(f"{path}: each stage needs a name of its own, which is not {SETTINGS}")
    for override in overrides:
        name, _, rest = override.partition(".")
        if override.startswith("folder="):
            folder = override.removeprefix("folder=")
        elif name in sections:
            kind = _kind(lines_by_name[name], path).config if name != SETTINGS else RunConfig
            apply_override(sections[name], rest, kind)
        else:
            raise ConfigError(f"--set {override}: {did_you_mean(name, ['folder', *sections])}")
    found = dict[str, Stage]()
    for name, line in lines_by_name.items():
        settings = _merged(sections[SETTINGS], sections[name])
        found[name] = _stage(line, settings, f"{folder.rstrip('/')}/{name}", found, path)
    return Stages(folder, tuple(found.values()))


def _stage(
    line: StageLine, settings: dict[str, Any], output: str, earlier: Mapping[str, Stage], path: str
) -> Stage:
    """One stage, with its places filled in."""
    source, reads = f"{path}, stage {line.name}", None
    settings = _merged(settings, {"output": {"path": output}})
    if line.reads is not None:
        reads = earlier.get(line.reads)
        if reads is None:
            known = did_you_mean(line.reads, earlier, "earlier stage")
            raise ConfigError(f"{source}: reads: {known}")
        if "path" in settings.get("input", {}):
            raise ConfigError(f"{source}: set one of reads and input.path")
        settings = _merged(settings, {"input": {"path": reads.results}})
    kind = _kind(line, path)
    return Stage(line.name, line.command, kind, parse_as(kind.config, settings, source), reads)


def _kind(line: StageLine, path: str) -> StageKind:
    try:
        return KINDS[line.command]
    except ValueError as error:
        raise ConfigError(f"{path}, stage {line.name}: {error}") from None


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``common`` with ``own`` key by key, sections in sections."""
    merged = dict(common)
    for key, value in own.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both else value
    return merged


def is_list_of_stages(path: str) -> bool:
    """Whether a YAML file lists stages, rather than being the configuration of one run."""
    try:
        return "stages" in read_yaml(path)
    except ConfigError:
        return False  # the loader of runs says what is wrong


def listed_traces(folder: str) -> dict[str, str]:
    """The traces of each stage that has begun, by name; none if ``folder`` has no stages."""
    store = Storage(folder)
    if not store.exists(LIST):
        return {}
    listed = {each["name"]: each["traces"] for each in json.loads(store.read(LIST))}
    return {n: t for n, t in listed.items() if Ledger(Storage(t)).manifest() is not None}


if __name__ == "__main__":
    from pipeline.cli import main

    main(["stages", *sys.argv[1:]])
