"""A user's own check of a sample: a function ``package.module:function`` of its trace.

The function gets the sample as a dict: all columns of `samples` that come from the run, with their
names there. It returns True or False. It runs in the driver, once for each sample with a whole
answer that no reference calls wrong, and again whenever the job looks at the samples anew. Time
limits and sandboxes are its own business: code that a model wrote must not run in this process.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import first_line
from pipeline.registry import load_object

Verify = Callable[[dict[str, Any]], Any]


def load_verifier(path: str) -> Verify:
    """The function that ``path`` names; raises `ValueError` if there is none."""
    if ":" not in path:
        raise ValueError(f"{path} must name a function as package.module:function")
    function: Verify = load_object(path)
    if callable(function):
        return function
    raise ValueError(f"{path} is no function")


def verdict(verify: Verify, trace: Mapping[str, Any]) -> tuple[bool | None, str | None]:
    """What ``verify`` says of a sample, or None and the error if it raises or says nothing."""
    try:
        answer = verify(dict(trace))
    except Exception as error:  # a user's function can raise anything
        return None, f"{type(error).__name__}: {first_line(error)}"
    if not isinstance(answer, bool):
        return None, f"it returned {answer!r}, not True or False"
    return answer, None
