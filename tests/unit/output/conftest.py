"""A ledger of an empty folder."""

from pathlib import Path

import pytest

from pipeline.output.ledger import Ledger
from pipeline.storage import Storage


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "out")))
