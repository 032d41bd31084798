"""No credential in anything that is written or told; no port for anybody else."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from tests.completions_server import KEY, servers
from tests.conftest import write_shards
from tests.e2e.command import ROOT, qwq_batch
from tests.s3 import S3Server

# Planted where credentials are kept; none of it may be found anywhere else.
PLANTED = {
    "HF_TOKEN": "hf_PLANTEDplantedPLANTED1",
    "AWS_SESSION_TOKEN": "PLANTEDsessionPLANTED2",
    "WANDB_API_KEY": "PLANTEDwandbPLANTED3",
    "RAY_AUTH_TOKEN": "PLANTEDrayPLANTED4PLANTED4PLANTED4",
}


def config_of(folder: Path, output: str, **more: object) -> Path:
    write_shards(folder / "in", [20])
    config = {
        "input": {"path": str(folder / "in")}, "output": {"path": output},
        "model": {"path": "qwq-nano"}, "engine": {"kind": "simulated", "device": "cpu"}, **more,
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def found_in(folder: Path, secrets: list[str]) -> list[str]:
    """The files that hold one of ``secrets``."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [
        str(path)
        for path in files
        if any(secret.encode() in path.read_bytes() for secret in secrets)
    ]


def test_planted_credentials_are_nowhere(tmp_path: Path, s3_server: S3Server) -> None:
    """Not in the output, the report, what is printed or Ray's logs; of good runs and failed ones."""
    ray = Path(tempfile.mkdtemp(prefix="ray"))  # sockets must have short paths
    secret = s3_server.environment["AWS_SECRET_ACCESS_KEY"]
    environment = {**PLANTED, **s3_server.environment, "RAY_TMPDIR": str(ray)}
    del environment["AWS_SESSION_TOKEN"]  # the server knows no sessions
    s3_server.filesystem().mkdir("secrets")
    path = config_of(tmp_path, "s3://secrets/out")
    told = []
    for arguments in (
        ("doctor", str(path)),
        ("run", str(path)),
        ("estimate", str(path)),
        ("status", "s3://secrets/out"),
        ("report", "s3://secrets/out", "--to", str(tmp_path / "report.html")),
    ):
        done = qwq_batch(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout + done.stderr)
    wrong = {**environment, "AWS_SECRET_ACCESS_KEY": "PLANTEDwrongPLANTED5"}
    for arguments in (("run", str(path)), ("doctor", str(path)), ("status", "s3://secrets/out")):
        done = qwq_batch(*arguments, **wrong)
        assert done.returncode != 0
        told.append(done.stdout + done.stderr)
    secrets = [*PLANTED.values(), secret, "PLANTEDwrongPLANTED5"]
    assert [one for one in secrets for text in told if one in text] == []
    s3_server.filesystem().get("secrets", str(tmp_path / "downloaded"), recursive=True)
    assert (tmp_path / "downloaded").exists()
    assert list(ray.rglob("*.log")) != []
    for folder in (tmp_path / "downloaded", ray):
        assert found_in(folder, secrets) == []
    shutil.rmtree(ray)
    assert not any(one in (tmp_path / "report.html").read_text() for one in secrets)


def test_key_of_servers_is_nowhere(tmp_path: Path) -> None:
    """Not even where a server repeats the key that it refuses."""
    ray = Path(tempfile.mkdtemp(prefix="ray"))
    environment = {"VLLM_API_KEY": KEY, "RAY_TMPDIR": str(ray)}
    with servers(2) as running:
        endpoint = {"urls": [one.url for one in running]}
        engine = {"kind": "endpoint", "device": "cpu", "endpoint": endpoint}
        path = config_of(tmp_path, str(tmp_path / "out"), engine=engine)
        told = []
        for key, code in (("another key", 2), (KEY, 0)):
            for one in running:
                one.key = key
            for command in ("plan", "doctor", "run"):
                done = qwq_batch(command, str(path), **environment)
                assert done.returncode in (code, 0 if command == "plan" else 1), done.stderr
                told.append(done.stdout + done.stderr)
            assert (done.returncode, "Bearer ***" in told[-1]) == (code, code == 2)
        page = ["--to", str(tmp_path / "report.html")]
        for command, *more in (["status"], ["report", *page]):
            done = qwq_batch(command, str(tmp_path / "out"), *more, **environment)
            assert done.returncode == 0, done.stderr
            told.append(done.stdout + done.stderr)
    assert not any(KEY in text for text in told)
    assert list(ray.rglob("*.log")) != []
    assert found_in(ray, [KEY]) + found_in(tmp_path, [KEY]) == []
    shutil.rmtree(ray)


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("output", {"path": "s3://AKIA:PLANTED6@bucket/out"}, "output.path: has credentials in it"),
        ("output", {"path": "s3://AKIA:ab/PLANTED6@b/out"}, "output.path: has credentials in it"),
        ("input", {"path": "https://user:PLANTED6@host/x"}, "input.path: has credentials in it"),
        ("input", {"path": "https://PLANTED6@host/x"}, "input.path: has credentials in it"),
        ("input", {"path": "https://h/x?Signature=PLANTED6"}, "input.path: has credentials in it"),
        ("engine", {"device": "cpu", "vllm": {"hf_token": "PLANTED6"}}, "HF_TOKEN"),
        ("engine", {"endpoint": {"urls": ["http://a:PLANTED6@b"]}}, "has credentials in it"),
        ("engine", {"endpoint": {"api_key_env": "sk-PLANTED6"}}, "not the key"),
    ],
)
def test_credentials_in_a_config_are_refused_and_not_repeated(
    tmp_path: Path, section: str, values: dict[str, object], told: str
) -> None:
    path = config_of(tmp_path, str(tmp_path / "out"))
    config = yaml.safe_load(path.read_text())
    config[section] = values
    path.write_text(yaml.safe_dump(config))
    done = qwq_batch("run", str(path))
    assert done.returncode == 2
    assert told in done.stderr
    assert "PLANTED6" not in done.stderr + done.stdout


def test_a_local_run_listens_on_loopback_only(tmp_path: Path) -> None:
    slow = {"seconds_per_token": 0.02, "tokens_median": 2000}
    path = config_of(
        tmp_path, str(tmp_path / "out"),
        engine={"kind": "simulated", "device": "cpu", "simulated": slow},
    )  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(path)], cwd=ROOT, env=os.environ,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "__qwq" / "record").exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        top = psutil.Process(run.pid)
        processes = [top, *top.children(recursive=True)]
        listening = {
            (process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    finally:
        run.terminate()
        run.wait(60)
    assert len(listening) > 3, "Ray's own ports were looked at"
    assert [one for one in listening if one[1] not in ("127.0.0.1", "::1")] == []
