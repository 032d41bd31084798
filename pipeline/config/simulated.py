"""The settings of the simulated engine; no I/O."""

from typing import Annotated

from pydantic import Field

from pipeline.config.section import Section


class SimulatedConfig(Section):
    """The simulated engine: no model, for scheduling and fault tests.

    A step generates one token of each running sequence. It takes the sum of the seconds below.
    """

    tokens_median: Annotated[int, Field(ge=1)] = Field(
        200, description="Median tokens of a trace; lengths are log-normal."
    )
    tokens_sigma: Annotated[float, Field(ge=0)] = Field(
        0.75, description="Standard deviation of the logarithm of the lengths."
    )
    seconds_per_token: Annotated[float, Field(ge=0)] = Field(
        0.0002, description="Seconds of each step."
    )
    seconds_per_sequence: Annotated[float, Field(ge=0)] = Field(
        0, description="More seconds for each running sequence."
    )
    seconds_per_kv_token: Annotated[float, Field(ge=0)] = Field(
        0, description="More seconds for each token of their contexts, read from the KV cache."
    )
    seconds_per_prompt_token: Annotated[float, Field(ge=0)] = Field(
        0,
        description="Seconds of prefill for each prompt or carried token; other sequences wait.",
    )
    kv_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Tokens that its KV cache holds. When it is full, the newest sequence is "
        "computed again, as in vLLM. Default: no end.",
    )
    dies_with: str | None = Field(
        None,
        description="A file: the first engine that sees it removes it and dies. A folder: all die.",
    )
    fails_to_start_with: str | None = Field(
        None,
        description="As `dies_with`, for engines that start. `$NAME` stands for an environment "
        "variable of the engine's node.",
    )
    loops: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="Share of traces that loop until the pipeline ends them."
    )
    endless: Annotated[float, Field(ge=0, le=1)] = Field(
        0,
        description="Share of traces that think until `sampling.max_tokens` without repetition.",
    )
    mixes: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="Share of traces that slip into Chinese."
    )
    right: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="Share of traces that answer 42 rather than any number."
    )
    changes_mind: Annotated[float, Field(ge=0, le=1)] = Field(
        0,
        description="Share of traces whose answer after all their thinking is another one than if "
        "it is closed before.",
    )
    dies_of: str | None = Field(
        None, description="An engine that gets a prompt with this text dies."
    )
    varies: bool = Field(
        False, description="Other text each time, as from an engine with other running sequences."
    )
    log: str | None = Field(
        None, description="A file to which each engine appends what it generates, as JSON lines."
    )
