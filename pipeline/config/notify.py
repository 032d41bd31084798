"""The section of a configuration that says who is told how a run ended; no I/O."""

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
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            # Messages repeat what was given, but for this kind of error.
            raise PydanticCustomError("credentials", "is no https:// or http:// URL")
        return url
