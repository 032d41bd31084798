"""The section of a configuration that says who is told how a run ended; no I/O."""

from typing import LiteralString
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError

from pipeline.config.section import Section


class NotifyConfig(Section):
    """Who is told how a run ended."""

    url: SecretStr | None = Field(
        None,
        description="`https://` URL that gets the report of each run as JSON by POST, at its end, "
        "at a limit, after a failure or a signal. It is never shown.",
    )

    @field_validator("url", mode="before")
    @classmethod
    def _is_web(cls, url: object) -> object:
        if url is None or isinstance(url, SecretStr):
            return url
        if problem := _problem(url):
            # Messages repeat what was given, but for this kind of error.
            raise PydanticCustomError("credentials", problem)
        return url


def _problem(url: object) -> LiteralString | None:
    """Why nothing can be sent to ``url``, without repeating it; None if something can."""
    no_url: LiteralString = "is no https:// or http:// URL"
    if not isinstance(url, str):
        return no_url
    if " " in url or not url.isprintable():
        return f"{no_url}: it has white space or control characters"
    try:
        parts = urlsplit(url)
        _ = parts.port  # read only here
    except ValueError:
        return f"{no_url}: its host or port can't be read; a port is a number up to 65535"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return no_url
    if "@" in parts.netloc:
        return "has a user or password before its host, which is not sent; take it out"
    return None
