"""The settings of servers that do an engine's work; no I/O."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.config.locations import has_credentials
from pipeline.config.section import Section

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _server(url: str) -> str:
    """``url`` without what follows the server's root; raises `ValueError` if it is none.

    Credentials raise `PydanticCustomError`, whose message does not repeat them.
    """
    if has_credentials(url):
        raise PydanticCustomError(
            "credentials", "has credentials in it; set the key in the environment (api_key_env)"
        )
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be the address of a server, such as http://host:8000")
    _ = parts.port  # raises ValueError
    return url.strip().rstrip("/").removesuffix("/v1")


Server = Annotated[str, AfterValidator(_server)]


class EndpointConfig(Section):
    """Servers of vLLM (`vllm serve`) that do the work in place of engines of the run."""

    urls: list[Server] = Field(
        default_factory=list,
        description="Addresses of the servers, such as `http://host:8000`. All serve the same "
        "model. They may change when a run is continued.",
    )
    model: str | None = Field(
        None,
        description="Name under which the servers serve the model, or a LoRA adapter. Default: the "
        "only model that they serve when the run begins. All servers must have it, at any time.",
    )
    api_key_env: str = Field(
        "VLLM_API_KEY",
        description="Environment variable with the servers' API key, on every node. If it is not "
        "set, no key is sent.",
    )
    slots: Annotated[int, Field(ge=1)] = Field(
        64,
        description="Most requests at one server at a time. A server that is slow to begin, or "
        "refuses requests (429, 503), gets fewer.",
    )

    @field_validator("urls")
    @classmethod
    def _different(cls, urls: list[str]) -> list[str]:
        if twice := sorted({url for url in urls if urls.count(url) > 1}):
            raise ValueError(f"names {', '.join(twice)} twice")
        return urls

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not VARIABLE.fullmatch(name):  # it may be the key itself
            raise PydanticCustomError(
                "credentials", "must be the name of an environment variable, not the key"
            )
        return name
