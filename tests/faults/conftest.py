"""Fixtures of the fault cases: one Ray cluster, runs on disk and object stores, a table at the end."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.faults.harness import Case, Outcome, Output, wait_until
from tests.faults.ray_cluster import RayCluster, ray_cluster
from tests.object_server import ObjectServer

BUCKET = "faults"
PROPERTY = "fault"  # of a test's report, which comes from another process if tests run at once
NewCase = Callable[..., Case]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=1, help="how often to kill the driver in a row")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    found = (
        value for report in reports for name, value in report.user_properties if name == PROPERTY
    )
    outcomes = [outcome for outcome in found if isinstance(outcome, dict)]
    if not outcomes:
        return
    terminalreporter.section("faults")
    names = ("traces", "lost", "doubled", "changed", "generated twice", "tokens twice")
    terminalreporter.write_line(f"| fault | {' | '.join(names)} | carried over |")
    terminalreporter.write_line("|---" * 8 + "|")
    for outcome in outcomes:
        cells = " | ".join(
            "–" if v is None else f"{v:,}" if isinstance(v, int) else v for v in outcome.values()
        )
        terminalreporter.write_line(f"| {cells} |")


def reporter_of(request: pytest.FixtureRequest) -> Callable[[Outcome], None]:
    """What adds an outcome to the report of this test."""
    properties = request.node.user_properties
    return lambda outcome: properties.append((PROPERTY, asdict(outcome)))


@pytest.fixture
def kills(pytestconfig: pytest.Config) -> int:
    """How often to kill the driver; the option is unknown where this folder was not named."""
    return int(pytestconfig.getoption("--kills", default=1))


@pytest.fixture(scope="package")
def told_to_end() -> Iterator[None]:
    """Tests that are told to end do so in order, so that no cluster stays behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="package")
def cluster(told_to_end: None) -> Iterator[RayCluster]:
    """One cluster for all cases."""
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def new_case(
    tmp_path: Path, cluster: RayCluster, request: pytest.FixtureRequest
) -> Iterator[NewCase]:
    """Make a case on the local disk, or on the object store of ``server``, reached at ``endpoint``.

    ``in_workers``: Python that each of its workers runs as it starts, to break something there.
    """
    cases: list[Case] = []

    def make(
        fault: str,
        *,
        sizes: list[int],
        samples: int = 2,
        server: ObjectServer | None = None,
        endpoint: str | None = None,
        in_workers: str | None = None,
        **sections: dict[str, Any],
    ) -> Case:
        folder = tmp_path / f"case-{len(cases)}"
        environment, of_workers = dict(cluster.environment), dict[str, str]()
        if server is None:
            output = Output(str(folder / "out"), fsspec.filesystem("file"))
        else:
            url = f"{server.bucket(BUCKET)}/{tmp_path.name}-{len(cases)}"
            output = Output(url, server.filesystem())
            of_workers |= server.environment_at(endpoint or server.endpoint)
            environment |= of_workers
        if in_workers is not None:
            folder.mkdir()
            (folder / "sitecustomize.py").write_text(in_workers)
            path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            of_workers["PYTHONPATH"] = os.pathsep.join(path)
        if of_workers:
            # Workers of a cluster do not have the driver's variables but by the job's environment.
            job = {"runtime_env": {"env_vars": of_workers}}
            environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(job)
        case = Case(fault, folder, output, sizes, samples, environment, sections)
        case.report = reporter_of(request)
        cases.append(case)
        return case

    yield make
    for case in cases:
        for driver in case.drivers:
            driver.kill()
    wait_until(lambda: not cluster.engines(), "the end of all engines", lambda: "")
