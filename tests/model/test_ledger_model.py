"""Scenarios of the ledger model, by seed; ``--scenarios N --first-scenario SEED`` chooses them."""

import logging
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.model.ledger_model import play

MEMORY = Path("/dev/shm")


def test_nothing_is_lost_doubled_changed_or_stuck(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    first = request.config.getoption("first_scenario")
    count = request.config.getoption("scenarios")
    print(f"scenarios {first} to {first + count - 1}")
    for seed in range(first, first + count):
        folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=MEMORY if MEMORY.is_dir() else None))
        try:
            play(seed, folder)
        finally:
            shutil.rmtree(folder)
