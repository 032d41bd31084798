"""An emulator of Azure Blob Storage for tests: Azurite."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.object_server import ObjectServer

ACCOUNT = "devstoreaccount1"
# Azurite's own, from its documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# `make azurite` installs it here.
FOLDER = Path(sys.executable).parents[1] / "azurite/node_modules/.bin"
AZURITE = shutil.which("azurite-blob", path=f"{FOLDER}:{os.environ['PATH']}")


class AzureServer(ObjectServer):
    """Azurite, with its account."""

    scheme = "az"

    def environment_at(self, endpoint: str, key: str = KEY) -> dict[str, str]:
        """For adlfs."""
        return {
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
                f"BlobEndpoint={endpoint}/{ACCOUNT};"
            )
        }

    def filesystem(self) -> Any:
        """By adlfs."""
        from adlfs import AzureBlobFileSystem

        [text] = self.environment.values()
        return AzureBlobFileSystem(connection_string=text, use_listings_cache=False)

    def command(self) -> list[str]:
        """Its part for blobs."""
        assert AZURITE, "Azurite is not installed: run make azurite"
        return [
            AZURITE, "--blobHost=127.0.0.1", f"--blobPort={self.ports[-1]}", "--silent",
            f"--location={self.folder}", "--disableTelemetry", "--skipApiVersionCheck",
        ]  # fmt: skip
