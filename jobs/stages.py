"""Several stages, each a run or a job of its own, in order.

    qwq-batch stages configs/math-recipe.yaml

A file lists the stages. Each has a name, which is its folder below ``folder``, a command, and the
sections of that command's configuration, where ``stage:NAME`` is the path of an earlier stage's
results. ``settings`` are those of all stages, unless a stage has its own. A stage that ``resumes``
an earlier one runs its command again in the same folder, with its settings and others besides. Each
stage resumes by itself, so the same command again goes on where it stopped.

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
      input: {path: "stage:samples"}
      judge: {rubric: Is the answer right?, verdicts: [right, wrong]}

It is a list, and no workflow engine: the first stage that fails or reaches a limit ends all.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

import pipeline
from jobs.job import Job, Outcome, StageKind
from jobs.markdown import table_lines
from pipeline import RunConfig, console
from pipeline.config.load import apply_override, parse_as, read_yaml
from pipeline.config.locations import Location
from pipeline.config.section import Section
from pipeline.engines import engine_type
from pipeline.errors import ConfigError, OutputError, QwqBatchError
from pipeline.input.conditions import check_expression
from pipeline.input.files import PARQUET_NAMES, find_files
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
    },
)
# In the folder of the stages: their names and where their traces are, for `status` and `report`.
LIST = "stages.json"
REFERENCE = re.compile(r"stage:([^\s{}]+)")
SETTINGS, FOLDER = "settings", "folder="


class StageLine(Section, extra="allow"):
    """One stage as the file has it; what else it has are sections of its command."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    command: str
    resumes: str | None = None


class StagesFile(Section):
    """The file."""

    folder: Location
    settings: dict[str, Any] = Field(default_factory=dict)
    stages: list[StageLine] = Field(min_length=1)


@dataclass(frozen=True)
class Stage:
    """One stage, checked. ``config``: of its command. ``reads``: the stages that it names.

    ``resumes``: the earlier one in whose folder it goes on.
    """

    name: str
    command: str
    kind: StageKind
    config: RunConfig
    reads: "tuple[Stage, ...]"
    resumes: "Stage | None"

    @property
    def results(self) -> str:
        """The folder that later stages read."""
        return f"{self.config.output.path}/{self.kind.results}".rstrip("/")

    @property
    def run(self) -> RunConfig:
        """The run that generates."""
        return self.config.run if isinstance(self.config, Job) else self.config

    @property
    def runs(self) -> Sequence[RunConfig]:
        """The runs that generate, in order."""
        return self.config.runs if isinstance(self.config, Job) else [self.config]

    def check(self) -> None:
        """Raise a `QwqBatchError` for what can be refused before its input is there."""
        for run in self.runs:
            engine_type(run.engine).check(run.engine)
            if run.input.where is not None:
                check_expression(run.input.where)
        reads_run = any(self.config.input.path == stage.results for stage in self.reads)
        self.kind.check(self.config, self.resumes and self.resumes.config, reads_run)

    @property
    def waits_for(self) -> str | None:
        """What must be there before it can be planned; None if all is."""
        for stage in self.reads:
            folder = Storage(stage.results)
            if not folder.is_folder() or not find_files(stage.results, PARQUET_NAMES)[1]:
                return f"results of stage {stage.name}"
        makes_prompts = self.run.input.path != self.config.input.path
        if makes_prompts and not Storage(self.run.input.path).is_folder():
            return "its prompts, which it makes when it begins"
        return None

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors say which stage they are of."""
        try:
            yield
        except QwqBatchError:
            console.warn(f"in stage {self.name} ({self.command}):")
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
        outcomes = list[Outcome]()  # of each stage as it ended: one that resumes it changes them
        for stage in self.stages:
            print_text(f"\n== stage {stage.name}: {stage.command}")
            with stage.named():
                if code := stage.kind.run(stage.config):
                    return code
                outcomes.append(stage.kind.outcome(stage.config))
        print_text("")
        console.print_lines(self._table(outcomes))
        return 0

    def plan_lines(self) -> Iterator[str]:
        """What each stage would run."""
        for stage in self.stages:
            yield f"== stage {stage.name}: {stage.command}, into {stage.config.output.path}"
            with stage.named():
                if stage.waits_for is None:
                    for run in stage.runs:
                        yield from pipeline.plan(run).lines()
                else:
                    yield f"waits for {stage.waits_for}"

    def estimates(self, rows: int) -> Iterator[tuple[Stage, "pipeline.Estimate | None"]]:
        """The estimate of each run of a stage, from a pilot of ``rows``; None while it waits."""
        for stage in self.stages:
            with stage.named():
                if stage.waits_for is not None:
                    yield stage, None
                    continue
                for run in stage.runs:
                    yield stage, pipeline.estimate(run, rows)

    def _table(self, ended: Sequence[Outcome]) -> Iterator[str]:
        """What went into each stage and came out of it, as Markdown."""
        outcomes = list(zip(self.stages, ended, strict=True))
        cells = [
            [
                stage.name, stage.command, f"{outcome.rows:,}", f"{outcome.results:,}",
                "–" if stage.resumes else f"{outcome.tokens:,}",
            ]
            for stage, outcome in outcomes
        ]  # fmt: skip
        yield from table_lines(["stage", "command", "rows in", "results", "tokens"], cells)
        tokens = sum(outcome.tokens for stage, outcome in outcomes if not stage.resumes)
        last, (_, results, _) = outcomes[-1]
        each = f", {tokens / results:,.0f} for each result" if results else ""
        yield f"\n{results:,} results of stage {last.name} from {tokens:,} tokens{each}"

    def _write_list(self) -> None:
        """Raises `OutputError` if the folder itself is the output of a run."""
        store = Storage(self.folder)
        if Ledger(store).manifest() is not None:
            raise OutputError(f"folder {self.folder} is the output of a run; choose another folder")
        traces = dict[str, str]()
        for stage in self.stages:
            for number, run in enumerate(stage.runs):
                path = run.output.path.removeprefix(f"{self.folder.rstrip('/')}/")
                # The further runs of a stage by their folders.
                traces.setdefault(
                    path, f"{stage.name}/{path.rpartition('/')[2]}" if number else stage.name
                )
        listed = [{"name": name, "traces": path} for path, name in traces.items()]
        store.put(LIST, (json.dumps(listed, indent=2) + "\n").encode())


def load_stages(path: str, overrides: Sequence[str] = ()) -> Stages:
    """The stages that a YAML file lists, see `parse_stages`."""
    return parse_stages(read_yaml(path), path, overrides)


def parse_stages(data: Mapping[str, Any], path: str, overrides: Sequence[str] = ()) -> Stages:
    """The stages that ``data`` of the file ``path`` lists.

    ``overrides``: ``NAME.key=value`` of a stage, ``settings.key=value``, or ``folder=value``.
    Raises `ConfigError` that names the stage and every wrong key.
    """
    folders = [each for each in overrides if each.startswith(FOLDER)]
    if folders:
        data = {**data, "folder": folders[-1].removeprefix(FOLDER)}
    file = _file(data, path)
    folder, lines_by_name = file.folder, {line.name: line for line in file.stages}
    sections = {SETTINGS: file.settings} | {
        name: dict(line.model_extra or {}) for name, line in lines_by_name.items()
    }
    if len(sections) <= len(file.stages):
        raise ConfigError(f"{path}: each stage needs a name of its own, which is not {SETTINGS}")
    for override in overrides:
        if override in folders:
            continue
        name, _, rest = override.partition(".")
        if name in sections:
            command = "run" if name == SETTINGS else lines_by_name[name].command
            with _source(f"{path}, stage {name}"):
                apply_override(sections[name], rest, _kind(command).config)
        else:
            raise ConfigError(f"--set {override}: {did_you_mean(name, ['folder', *sections])}")
    found = dict[str, Stage]()
    for name, line in lines_by_name.items():
        with _source(f"{path}, stage {name}"):
            output = f"{folder.rstrip('/')}/{name}"
            if line.resumes is not None:
                first = _earlier(found, line.resumes)
                if line.command != first.command:
                    raise ConfigError(
                        f"command is {line.command}, but it resumes {first.name}, whose command is "
                        f"{first.command}; a stage resumes one of its own command"
                    )
                sections[name] = _merged(sections[first.name], sections[name])
                output = first.config.output.path
            found[name] = _stage(line, _merged(sections[SETTINGS], sections[name]), output, found)
            found[name].check()
    return Stages(folder, tuple(found.values()))


def _file(data: Mapping[str, Any], path: str) -> StagesFile:
    try:
        return StagesFile.model_validate(data)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join([f"{path} is not a list of stages:", *lines])) from None


def _stage(
    line: StageLine, settings: dict[str, Any], output: str, earlier: Mapping[str, Stage]
) -> Stage:
    """One stage, with its places filled in."""
    named = dict[str, Stage]()

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [filled(each) for each in value]
        if isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            stage = _earlier(earlier, reference[1])
            named[stage.name] = stage
            return stage.results
        return value

    if isinstance(own := settings.get("output"), Mapping) and "path" in own:
        raise ConfigError(f"output.path: the folder of a stage is {output}; remove output.path")
    settings = _merged(filled(settings), {"output": {"path": output}})
    kind = _kind(line.command)
    config = parse_as(kind.config, settings, "it")
    return Stage(
        line.name, line.command, kind, config, tuple(named.values()),
        None if line.resumes is None else earlier[line.resumes],
    )  # fmt: skip


def _earlier(stages: Mapping[str, Stage], name: str) -> Stage:
    if name not in stages:
        raise ConfigError(did_you_mean(name, stages, "earlier stage"))
    return stages[name]


def _kind(command: str) -> StageKind:
    try:
        kind = KINDS[command]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(kind, StageKind):
        raise ConfigError(f"command {command} is a {type(kind).__name__}; it must be a StageKind")
    return kind


@contextmanager
def _source(name: str) -> Iterator[None]:
    """Errors begin with ``name``."""
    try:
        yield
    except QwqBatchError as error:
        raise type(error)(f"{name}: {error.message}") from None


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``common`` with ``own`` key by key, sections in sections."""
    merged = dict(common)
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(below := merged.get(key), Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged


def is_list_of_stages(data: Mapping[str, Any]) -> bool:
    """Whether a file with ``data`` lists stages, rather than being the configuration of one run."""
    return "stages" in data


def listed_traces(folder: str) -> dict[str, str]:
    """The traces of each stage that has begun, by name; none if ``folder`` has no stages."""
    store = Storage(folder)
    if not store.exists(LIST):
        return {}
    root = folder.rstrip("/")
    listed = {each["name"]: f"{root}/{each['traces']}" for each in json.loads(store.read(LIST))}
    return {n: t for n, t in listed.items() if Ledger(Storage(t)).manifest() is not None}


if __name__ == "__main__":
    from pipeline.cli import main

    main(["stages", *sys.argv[1:]])
