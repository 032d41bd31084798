"""The body of a request of the OpenAI Batch API: what of it is read, ignored or refused; no I/O."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.prompts.messages import joined_parts

# Fields that change no result; and fields that change none at this value, or at null.
IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "stream_options", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "prediction", "request_id", "priority",
    "cache_salt",
})  # fmt: skip
DEFAULTS = {
    "stop": [], "logit_bias": {}, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0,
    "stream": False, "parallel_tool_calls": True, "modalities": ["text"],
    "reasoning_effort": "medium", "verbosity": "medium",
    # vLLM's own
    "add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False,
    "echo": False, "include_reasoning": True, "chat_template_kwargs": {}, "documents": [],
    "min_tokens": 0, "ignore_eos": False, "stop_token_ids": [], "bad_words": [],
    "include_stop_str_in_output": False, "skip_special_tokens": True,
    "spaces_between_special_tokens": True, "use_beam_search": False, "length_penalty": 1,
    "return_token_ids": False, "return_tokens_as_token_ids": False,
}  # fmt: skip
# Arguments of the template that change nothing: these models think.
TEMPLATE_DEFAULTS = {"enable_thinking": True, "thinking": True}
# Fields of an earlier answer that are no part of the prompt: templates drop the thinking.
NOT_IN_PROMPT = frozenset({"reasoning", "reasoning_content", "annotations"})
# Fields that are whole numbers, which some languages write as 100.0.
WHOLE = frozenset({"top_k", "n", "max_tokens", "max_completion_tokens", "seed"})


class Strict(BaseModel):
    """A part of a request: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Function(Strict):
    """A function call in an earlier turn; ``arguments`` is JSON text."""

    name: str
    arguments: str

    @field_validator("arguments", mode="before")
    @classmethod
    def _json_text(cls, arguments: Any) -> Any:
        if isinstance(arguments, dict):
            return json.dumps(arguments, ensure_ascii=False)
        try:
            json.loads(arguments or "{}")
        except (TypeError, ValueError, RecursionError):
            raise ValueError("must be JSON text") from None
        return arguments or "{}"


class Call(Strict):
    """A tool call in an earlier turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _without_index(cls, call: Any) -> Any:
        """Without the place in the list, which streams number."""
        if not isinstance(call, dict):
            return call
        return {k: v for k, v in call.items() if v is not None and k != "index"}


class Message(Strict):
    """One turn; content in several parts is joined to one text."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        return {k: v for k, v in message.items() if v is not None and k not in NOT_IN_PROMPT}

    @field_validator("role", mode="before")
    @classmethod
    def _developer_is_system(cls, role: Any) -> Any:
        return "system" if role == "developer" else role

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        return joined_parts(content) if isinstance(content, list) else content

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self


class Schema(BaseModel):
    """``response_format.json_schema``, without its name and strictness."""

    model_config = ConfigDict(strict=True)

    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type json_schema and json_schema go together")
        return self

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer; None for text."""
        if self.type == "json_object":
            return {"type": "object"}
        return None if self.json_schema is None else self.json_schema.json_schema


class Body(Strict):
    """The body of a chat completion request."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    response_format: ResponseFormat | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_ignored_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        arguments = body.get("chat_template_kwargs")
        if isinstance(arguments, dict):
            changing = {k: v for k, v in arguments.items() if TEMPLATE_DEFAULTS.get(k) is not v}
            body = {**body, "chat_template_kwargs": changing}
        fields = {
            name: int(value) if name in WHOLE and _is_whole(value) else value
            for name, value in body.items()
            if value is not None and name not in IGNORED and DEFAULTS.get(name) != value
        }
        if unsupported := [name for name in fields if name not in cls.model_fields]:
            raise ValueError(f"unsupported: {', '.join(unsupported)}; remove it")
        return fields

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for tool in tools or ():
            if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
                raise ValueError("only tools of type function are supported")
        return tools

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; set one of them")
        return self


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
