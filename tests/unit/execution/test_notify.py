"""How a run ended is told to a real HTTP server: complete, limit, failure, signal; and retried."""

import json
import logging
import threading
import time
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, InputError, LimitReachedError, StoppedError
from pipeline.execution import notify
from pipeline.execution.notify import notified
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish

SECRET = "T0PSECRET"


class Receiver(HTTPServer):
    """Takes reports; ``refusals``: how many it answers with ``refusal`` first.

    ``garbage``: what it answers in place of a status line.
    """

    refusal = 503
    garbage: bytes | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reports, self.tries, self.refusals = list[dict[str, Any]](), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}?key={SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.tries += 1
        if self.server.garbage is not None:
            self.wfile.write(self.server.garbage)
            return
        taken = self.server.tries > self.server.refusals
        if taken:
            self.server.reports.append(body)
        self.send_response(204 if taken else self.server.refusal)
        if not taken and self.server.refusal < 400:
            self.send_header("Location", self.server.url)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: None)
    monkeypatch.setattr(notify, "time", clock)
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def config(receiver: Receiver, tmp_path: Path, make_config: MakeConfig) -> RunConfig:
    write_shards(tmp_path / "in", [4, 2])
    return make_config(notify={"url": receiver.url})


def test_complete_run_is_reported_with_its_counts(config: RunConfig, receiver: Receiver) -> None:
    with notified(config):
        finish(config)
    [report] = receiver.reports
    assert report.pop("seconds") >= 0
    assert report == {
        "output": config.output.path, "model": "qwq-nano", "ended": "complete", "message": None,
        "rows": 6, "rows_expected": 6, "traces": 6, "states": {"finished": 6},
        "prompt_tokens": 30, "think_tokens": 12, "answer_tokens": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "ended", "message"),
    [
        (LimitReachedError("limits.minutes is reached"), "limit", "limits.minutes is reached"),
        (StoppedError("ended by SIGTERM", 15), "stopped", "ended by SIGTERM"),
        (InputError("a shard has changed"), "failed", "a shard has changed"),
        (ZeroDivisionError(f"of {SECRET}"), "failed", None),
    ],
)
def test_other_ends_are_reported_and_go_on(
    config: RunConfig, receiver: Receiver, error: Exception, ended: str, message: str | None
) -> None:
    receiver.refusals = 2
    with pytest.raises(type(error)), notified(config):
        raise error
    [report] = receiver.reports
    assert (report["ended"], report["message"]) == (ended, message)
    assert "states" not in report
    assert receiver.tries == 3
    assert SECRET not in json.dumps(report)


def test_report_that_nobody_takes_is_a_warning_without_the_url(
    config: RunConfig,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "NOTIFY_SECONDS", 5)
    receiver.refusals = 1000
    with caplog.at_level(logging.DEBUG), notified(config):
        finish(config)
    assert 2 <= receiver.tries <= 4
    assert "notify.url on 127.0.0.1 has not taken the report (status 503)" in caplog.text
    assert SECRET not in caplog.text


def test_answer_that_is_no_http_is_a_warning_and_the_runs_own_error_goes_on(
    config: RunConfig,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "NOTIFY_SECONDS", 1)
    receiver.garbage = f"{SECRET} is no status line\r\n\r\n".encode()
    with pytest.raises(InputError), notified(config):
        raise InputError("a shard has changed")
    assert "notify.url on 127.0.0.1 has not taken the report (BadStatusLine)" in caplog.text
    notify.send(f"http://bot:{SECRET}@127.0.0.1/hook", {}, 1)
    assert "(InvalidURL)" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_does_not_lose_the_report_in_silence(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    receiver.refusal, receiver.refusals = status, 1000
    notify.send(receiver.url, {}, 1)
    assert receiver.tries == 1
    assert f"notify.url on 127.0.0.1 has not taken the report (status {status})" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"https://bot:{SECRET}@example.org/hook", "has a user or password before its host"),
        (f"https://{SECRET}@example.org/hook", "has a user or password before its host"),
        (f"https://example.org/{SECRET} x", "has white space or control characters"),
        (f"https://example.org/{SECRET}\n", "has white space or control characters"),
        (f"https://example.org:{SECRET}/hook", "a port is a number"),
        (f"https://example.org:99999/{SECRET}", "a port is a number"),
        (f"https://[{SECRET}/hook", "its host or port can't be read"),
    ],
)
def test_url_to_which_nothing_can_be_sent_is_refused_and_not_repeated(
    make_config: MakeConfig, url: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"notify\.url: .*{reason}") as caught:
        make_config(notify={"url": url})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"notify: {{URL: 'https://{SECRET}'}}", r"notify: .*unknown key.*accepted: url"),
        (f"notify: {{'https://{SECRET}': }}", r"notify: .*unknown key.*accepted: url"),
        (f"notify: {{url: {{'{SECRET}': 1}}}}", r"notify\.url: is no https"),
        (f"notify: https://{SECRET}", "notify: must be a mapping with url"),
        (f"notify:\n  url: 'https://{SECRET}", "quoted scalar, line 5, column 8; .* end of stream"),
        (f"notify:\n  url: https://{SECRET}: x", "mapping values are not allowed here, line 5"),
    ],
)
def test_section_that_is_written_wrong_is_refused_and_not_repeated(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"input: {{path: a}}\noutput: {{path: b}}\nmodel: {{path: c}}\n{text}\n")
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(path)
    assert SECRET not in str(caught.value)


def test_override_without_an_equals_sign_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("input: {path: a}\n")
    with pytest.raises(ConfigError, match=r"--set .* no = after notify\.url$") as caught:
        load_config(tmp_path / "run.yaml", [f"notify.url:https://{SECRET}"])
    assert SECRET not in str(caught.value)


def test_url_is_never_shown(config: RunConfig, make_config: MakeConfig) -> None:
    finish(config)
    stored = b"".join(p.read_bytes() for p in Path(config.output.path).rglob("*") if p.is_file())
    assert SECRET.encode() not in stored
    assert SECRET not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
    for wrong in (f"file:///{SECRET}", f"{SECRET}.example.org", f"https:/{SECRET}", [SECRET]):
        with pytest.raises(ConfigError, match=r"notify\.url: is no https") as caught:
            make_config(notify={"url": wrong})
        assert SECRET not in str(caught.value)
