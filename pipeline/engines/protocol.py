"""What the pipeline asks of an engine (`Engine`) and of a kind of engine (`EngineType`); no I/O."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from pipeline.config.run_config import RunConfig
from pipeline.config.section import Section
from pipeline.config.sections import EngineConfig
from pipeline.engines.memory import MemoryNeed
from pipeline.errors import ConfigError
from pipeline.reasoning.sampling import SamplingPolicy
from pipeline.registry import did_you_mean

# How many tokens of a running request an engine passes on at a time.
TOKENS_A_REPORT = 64
DEFAULT_SLOTS = 64
# Slots for traces to one for their probes: a probe takes some ten tokens of a few hundred.
SLOTS_A_PROBE = 8

# Gets new token ids. Returns True if the request must end, because the trace loops.
OnTokens = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class Request:
    """One sample of one row, from its prompt or from where an earlier run stopped.

    ``id``: for logs. ``carried_token_ids``: generated before; new tokens continue them, and
    ``policy.max_tokens`` counts them too. ``stop_ids``: tokens that end the request, besides those
    that end a turn. ``schema``: a JSON Schema that the generated text must fit. Its tokens are
    passed on all at once, because a grammar can't continue from the middle. ``trace``: the trace
    that it belongs to, by name: its requests begin with the same tokens.
    """

    id: str
    prompt_token_ids: Sequence[int]
    carried_token_ids: Sequence[int]
    policy: SamplingPolicy
    seed: int
    stop_ids: Sequence[int] = ()
    schema: str | None = None
    trace: str = ""


@dataclass(frozen=True)
class EngineLoad:
    """What an engine does at one moment: sequences that run and that wait for a slot.

    ``kv_usage``: the share of its KV cache that is in use; None where it has none. ``preemptions``:
    how often, since its start, a sequence has lost its place in a full cache;
    ``recomputed_tokens``: those of its context that were then computed again. ``drafted_tokens``:
    guessed by speculative decoding; ``accepted_tokens``: of these, the right ones.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None
    preemptions: int = 0
    recomputed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Engine(Protocol):
    """A running engine. It takes many requests at once."""

    @property
    def load(self) -> EngineLoad:
        """Its load now. Called in the event loop's thread."""
        ...

    @property
    def context_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        ...

    async def generate(self, request: Request, on_tokens: OnTokens) -> str:
        """Run one request to its end; returns why it ended: ``stop``, ``length``, ``repetition``.

        ``on_tokens`` gets every new token id once, in order, some `TOKENS_A_REPORT` at a time, and
        all of them before this returns. If it returns True, the request ends with ``repetition``.
        A request that is cancelled ends soon.
        An engine that passes nothing on for `HUNG_SECONDS`, and whose `load` does not change, is
        taken for hung.
        Raises `RequestRejectedError` if this request can't run, `EngineDeadError` if none can, and
        `ModelError` if none could on another start either.
        """
        ...

    def close(self) -> None:
        """Stop the engine and free what it holds. Running requests end."""
        ...


class EngineType(ABC):
    """A kind of engine: all that the pipeline asks of it besides generation.

    ``engine.kind`` names an object of this class, by a built-in name or by its import path. Only
    `build` has no default. The other methods get the ``engine`` section of a configuration.
    """

    # The packages that run it. One must be installed; an output's files name their versions.
    packages: tuple[str, ...] = ()
    # Their versions that the engine can run with, such as ">=1.2,<2".
    supported_versions = ""
    # Environment variables of the process that builds an engine, unless that process or the driver
    # has others.
    environment: Mapping[str, str] = {}
    # The setting that lets an engine take GPUs of several nodes, if there is one.
    several_nodes_setting: str | None = None
    # The setting that lets a model's own code run, if there is one.
    model_code_setting: str | None = None

    @abstractmethod
    def build(self, config: RunConfig, tokenizer: Any) -> Engine:
        """Start an engine, in a Ray actor. Raises `ModelError` if it can't start."""

    def check(self, engine: EngineConfig) -> None:
        """Raise `ConfigError` for settings that this kind can't run with."""
        if engine.is_elastic and engine.device == "cpu":
            raise ConfigError(
                "engine.replicas: a range needs engine.device gpu. On CPUs, engines that wait for "
                "room would take the CPUs that reading and writing need; set a number"
            )
        parse_options(Section, engine)

    def services(self, config: RunConfig) -> Iterator[tuple[bool, str]]:
        """What its engines use outside of the cluster, for `qwq-batch doctor`.

        For each, whether it can be used now, and a line about it. Raises `ModelError` if a run
        could not start.
        """
        return iter(())

    def packages_for(self, device: str) -> tuple[str, ...]:
        """Those of `packages` that run it on ``device`` (gpu or cpu)."""
        return self.packages

    def slots(self, engine: EngineConfig) -> int:
        """How many sequences one engine runs at once."""
        return DEFAULT_SLOTS

    def has_slots(self, engine: EngineConfig) -> bool:
        """Whether its settings, or the kind itself, say how many slots an engine has."""
        return True

    def with_slots(self, engine: EngineConfig, slots: int) -> EngineConfig:
        """``engine`` with so many slots. Called only if `has_slots` returns False."""
        raise NotImplementedError

    def result_settings(self, engine: EngineConfig) -> dict[str, Any]:
        """The settings that change the rows, by full name. A resumed run must share them."""
        return {f"engine.options.{name}": value for name, value in engine.options.items()}

    def found_at_start(self, config: RunConfig) -> dict[str, Any]:
        """Settings that change the rows too, but that only what it uses can tell, by full name.

        Asked for once, when a run begins, and recorded. Raises `ModelError` if nothing tells them.
        """
        return {}

    def as_begun(self, engine: EngineConfig, settings: Mapping[str, Any]) -> EngineConfig:
        """``engine`` with what was found at the start, by the recorded ``settings`` of the run."""
        return engine

    def with_context(
        self, engine: EngineConfig, tokens: int, rope: Mapping[str, Any] | None
    ) -> EngineConfig:
        """``engine`` with a context of ``tokens``, for ``engine.context: auto``.

        ``rope``: the rope section of the model's config.json with YaRN; None: as the model has it.
        """
        raise ConfigError(
            f"engine.context=auto: engine.kind {engine.kind} can't change its context; set "
            "engine.context=native"
        )

    def yarn_factor(self, engine: EngineConfig) -> float | None:
        """YaRN's factor, whoever has set it; None without YaRN."""
        return None

    def spans_nodes(self, engine: EngineConfig) -> bool | None:
        """Whether one engine's GPUs may lie on several nodes; None: where no node has enough."""
        return False

    def over_nodes(self, engine: EngineConfig) -> EngineConfig:
        """``engine`` with GPUs on several nodes. Called only if `spans_nodes` returns None."""
        raise NotImplementedError

    def details(self, engine: Any) -> dict[str, Any]:
        """What a running ``engine`` of this kind found when it started, by name; for people."""
        return {}

    def memory(self, engine: EngineConfig, model: Mapping[str, Any]) -> MemoryNeed | None:
        """What an engine takes of its GPUs' memory; ``model``: its config.json; None: unknown."""
        return None

    def runs_model_code(self, engine: EngineConfig) -> bool:
        """Whether Python code that comes with the model may run."""
        return False

    def warnings(self, engine: EngineConfig) -> Iterator[str]:
        """Settings that are allowed but risky; each warning names its setting."""
        return iter(())

    def plan_lines(self, engine: EngineConfig) -> Iterator[str]:
        """Its own settings, as `qwq-batch plan` prints them."""
        if engine.options:
            yield f"options   {json.dumps(engine.options)}"


def probe_slots(config: RunConfig, slots: int) -> int:
    """The slots that an engine has for probes, besides its ``slots`` for traces."""
    return 0 if config.thinking.early_answer is None else -(-slots // SLOTS_A_PROBE)


Options = TypeVar("Options", bound=Section)


def parse_options(model: type[Options], engine: EngineConfig) -> Options:
    """``engine.options`` as a ``model``; raises `ConfigError` that names every wrong key."""
    try:
        return model.model_validate(engine.options)
    except ValidationError as error:
        reasons = []
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"]))
            reason = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                accepted = list(model.model_fields)
                reason = did_you_mean(name, accepted, "key") if accepted else (
                    f"engine.kind {engine.kind} has no options"
                )  # fmt: skip
            reasons.append(f"engine.options.{name}: {reason}")
        raise ConfigError("\n".join(reasons)) from None
