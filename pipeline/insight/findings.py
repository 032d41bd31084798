"""A finding of the doctor."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``advice``: what to do, if anything."""

    level: Level
    what: str
    advice: str | None = None

    def __str__(self) -> str:
        advice = "" if self.advice is None else f"\n{'':<10}-> {self.advice}"
        return f"{self.level:<9} {self.what}{advice}"
