"""Tell ``notify.url`` how a run ended: its report as JSON, by one POST, retried.

The URL may hold a secret: messages have its host alone.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pipeline.config.run_config import RunConfig
from pipeline.errors import LimitReachedError, QwqBatchError, StoppedError
from pipeline.output.ledger import Ledger
from pipeline.output.summary import recorded_summary
from pipeline.storage import Storage
from pipeline.time_limits import NOTIFY_SECONDS, NOTIFY_STOPPED_SECONDS

logger = logging.getLogger(__name__)
FIRST_WAIT_SECONDS = 1.0


@contextmanager
def notified(config: RunConfig) -> Iterator[None]:
    """Report the end of the run in the body, whatever it is, if ``notify.url`` is set."""
    started, failure = time.monotonic(), None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        if config.notify.url is not None:
            report = report_of(config, failure, time.monotonic() - started)
            is_stopped = isinstance(failure, StoppedError)
            seconds = NOTIFY_STOPPED_SECONDS if is_stopped else NOTIFY_SECONDS
            send(config.notify.url.get_secret_value(), report, seconds)


def report_of(config: RunConfig, failure: BaseException | None, seconds: float) -> dict[str, Any]:
    """What is known at the end of a run.

    Without counts if the output does not tell them, or after a signal: SIGKILL follows soon.
    """
    report: dict[str, Any] = {
        "output": config.output.path, "model": config.model.path, "ended": _ended(failure),
        "message": failure.message if isinstance(failure, QwqBatchError) else None,
        "seconds": round(seconds),
    }  # fmt: skip
    if isinstance(failure, StoppedError):
        return report
    try:
        summary = recorded_summary(Ledger(Storage(config.output.path)))
    except Exception:  # such as an output that does not answer; how the run ended is said anyway
        logger.debug("the output can't be read for the report", exc_info=True)
        return report
    if failure is None and not summary.is_complete:
        report["ended"] = "incomplete"
    return report | {
        "rows": summary.rows,
        "rows_expected": summary.expected_rows,
        "traces": summary.traces,
        "states": dict(summary.states),
        "prompt_tokens": summary.prompt_tokens,
        "think_tokens": summary.think_tokens,
        "answer_tokens": summary.answer_tokens,
    }


def _ended(failure: BaseException | None) -> str:
    kinds = {StoppedError: "stopped", LimitReachedError: "limit"}
    found = (name for kind, name in kinds.items() if isinstance(failure, kind))
    return "complete" if failure is None else next(found, "failed")


class _NoRedirects(HTTPRedirectHandler):
    """Redirects are errors with their status: followed, the POST would become a GET of nothing."""

    def redirect_request(self, *_: Any) -> None:
        """None: not followed."""


def send(url: str, report: dict[str, Any], seconds: float) -> None:
    """POST ``report`` until it is taken, for ``seconds`` at most; a warning if it never is."""
    deadline, wait = time.monotonic() + seconds, FIRST_WAIT_SECONDS
    data = json.dumps(report).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "qwq-batch"}
    opener = build_opener(_NoRedirects)
    while True:
        request = Request(url, data, headers)  # noqa: S310 (http and https only, see NotifyConfig)
        try:
            with opener.open(request, timeout=max(0.1, deadline - time.monotonic())):
                return
        except HTTPError as error:
            reason = f"status {error.code}"
            error.close()
        except (OSError, ValueError, HTTPException) as error:
            reason = type(error).__name__
        if time.monotonic() + wait >= deadline:
            host = urlsplit(url).hostname
            logger.warning("notify.url on %s has not taken the report (%s)", host, reason)
            return
        time.sleep(wait)
        wait *= 2
