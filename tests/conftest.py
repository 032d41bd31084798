"""Fixtures: prompt shards, one Ray cluster for all simulated runs, one server of each object store."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from tests import hub as stub_hub
from tests.azure import AZURITE, AzureServer
from tests.google_cloud import GoogleCloudServer
from tests.hub import Hub
from tests.object_server import ObjectServer, serve
from tests.s3 import S3Server

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The machine may be busy with anything: how long an example takes says nothing. In CI the examples are
# the same every time: a change that passes does so again.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "CI" in os.environ:
    PATIENT = settings(PATIENT, derandomize=True, database=None)
settings.register_profile("patient", PATIENT)
settings.load_profile("patient")
# Programs that a machine may lack; tests that need one are skipped, unless it is named here.
REQUIRED_PROGRAMS = os.environ.get("QWQ_REQUIRED_PROGRAMS", "").split()
PROMPTS = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
MakeConfig = Callable[..., RunConfig]


# What runs at once in `make test`: two groups at a time, the longest first. (Three would be slower, as
# two cores are busy with the starts.) Tests of a group share what they start. Those of the real engine are one group, because two
# of them on two cores would slow each other down more than they save.
GROUPS = ("faults", "vllm", "integration", "fleets", "unit", "e2e", "model")
REAL_ENGINE = (
    "e2e/test_answers",
    "e2e/test_jobs",
    "e2e/test_row_settings",
    "e2e/test_vllm",
    "e2e/test_workers",
    "faults/test_endpoints",
)
# These take as long as all other faults, and start a cluster of their own.
FLEETS = (
    "faults/test_engines_come_and_go",
    "faults/test_ray_jobs",
    "faults/test_slurm",
    "faults/test_workers",
)


def group_of(nodeid: str) -> str:
    """The group of the test ``tests/FOLDER/…/FILE.py::NAME``."""
    name = PurePosixPath(nodeid.partition("::")[0]).relative_to("tests").with_suffix("")
    if str(name) in REAL_ENGINE:
        return "vllm"
    return "fleets" if str(name) in FLEETS else name.parts[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many scenarios of the ledger model run, and from which seed on."""
    parser.addoption("--scenarios", type=int, default=100, help="of the ledger model")
    parser.addoption("--first-scenario", type=int, default=1, help="the seed of the first one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip long tests if they are not asked for; order the groups for pytest-xdist, if it runs."""
    if "QWQ_TEST_LONG" not in os.environ:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="a long one: make long"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: GROUPS.index(group_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole groups. (xdist's own groups do nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log)


def needs_program(name: str, is_there: bool, install: str) -> pytest.MarkDecorator:
    """Skip without a program; where ``QWQ_REQUIRED_PROGRAMS`` names it, run and fail instead.

    ``install``: the command, or Debian's packages.
    """
    if not install.startswith("make "):
        install = f"on Debian: apt-get install --no-install-recommends {install}"
    return pytest.mark.skipif(
        not is_there and name not in REQUIRED_PROGRAMS, reason=f"no {name} ({install})"
    )


# The object stores, by the fixture that has a server of it.
NEEDS_AZURITE = needs_program("azurite", AZURITE is not None, "make azurite")
OBJECT_STORES = ("s3", "google_cloud", pytest.param("azure", marks=NEEDS_AZURITE))
LONG_ON_AZURE = pytest.param("azure", marks=[NEEDS_AZURITE, pytest.mark.long])


def write_shards(folder: Path, sizes: list[int], prompt: str = "What is {} + 1?") -> int:
    """Write shards of prompts with consecutive ids, those that are not there; returns the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for shard, size in enumerate(sizes):
        rows = [{"id": i, "prompt": prompt.format(i)} for i in range(first, first + size)]
        path = folder / f"shard-{shard:05}.parquet"
        if not path.exists():
            pq.write_table(pa.Table.from_pylist(rows, PROMPTS), path)
        first += size
    return first


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """A run of the simulated engine from ``tmp_path/in`` to ``tmp_path/out``; sections override."""

    def make(**sections: dict[str, Any]) -> RunConfig:
        base: dict[str, dict[str, Any]] = {
            "input": {"path": str(tmp_path / "in")},
            "output": {"path": str(tmp_path / "out")},
            "model": {"path": "qwq-nano"},
            "engine": {"kind": "simulated", "device": "cpu"},
        }
        return parse_config(
            {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
        )

    return make


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the whole test run."""
    with serve(S3Server(tmp_path_factory.mktemp("seaweedfs"))) as server:
        yield server


@pytest.fixture(scope="session")
def google_cloud_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleCloudServer]:
    """One fake-gcs-server for the whole test run."""
    with serve(GoogleCloudServer(tmp_path_factory.mktemp("gcs"))) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """One Azurite for the whole test run."""
    with serve(AzureServer(tmp_path_factory.mktemp("azurite"))) as server:
        yield server


def at(endpoint: str, server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the environment at ``server`` or a proxy, with no client left over from before."""
    for name, value in server.environment_at(endpoint).items():
        monkeypatch.setenv(name, value)
    type(server.filesystem()).clear_instance_cache()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the environment pointing at it."""
    at(s3_server.endpoint, s3_server, monkeypatch)
    return s3_server


@pytest.fixture
def google_cloud(
    google_cloud_server: GoogleCloudServer, monkeypatch: pytest.MonkeyPatch
) -> GoogleCloudServer:
    """The server, with the environment pointing at it."""
    at(google_cloud_server.endpoint, google_cloud_server, monkeypatch)
    return google_cloud_server


@pytest.fixture
def azure(azure_server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> AzureServer:
    """The server, with the environment pointing at it."""
    at(azure_server.endpoint, azure_server, monkeypatch)
    return azure_server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stub of the Hugging Face hub that huggingface_hub talks to, in this process and its children."""
    from huggingface_hub import HfFileSystem, constants

    with stub_hub.serve() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        cache, template = str(tmp_path / "hub-cache"), "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setenv("HF_HUB_CACHE", cache)
        monkeypatch.setattr(
            constants, "HF_HUB_CACHE", cache
        )  # it reads its environment when imported
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        HfFileSystem.clear_instance_cache()
        yield server


@pytest.fixture
def iceberg_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an Iceberg catalog, in SQLite, that pyiceberg finds in its configuration."""
    from pyiceberg.utils.config import Config

    settings = {
        "URI": f"sqlite:///{tmp_path}/c.db",
        "TYPE": "sql",
        "WAREHOUSE": f"file://{tmp_path}/w",
    }
    for key, value in settings.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__TEAM__{key}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it is read when imported
    return "team"
