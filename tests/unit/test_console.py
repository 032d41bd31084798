"""What commands print, and how they end."""

from pathlib import Path

import pytest

from pipeline import console
from pipeline.errors import IncompleteRunError
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish


def test_a_run_of_which_every_row_failed_has_not_gone_well(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    write_shards(tmp_path / "in", [3])
    config = make_config(output={"rename": {"error": "why"}})
    failed = {"state": "failed", "error": "invalid_prompt: x is empty", "answer": None}
    with pytest.raises(
        IncompleteRunError, match=r"all 3 traces failed \(the first: invalid_prompt"
    ):
        console.refuse_all_failed(finish(config, lambda *_: failed), config)


def test_a_run_of_which_some_rows_failed_has_gone_well(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    write_shards(tmp_path / "in", [3])
    config = make_config()
    summary = finish(config, lambda row, _: {"state": "failed"} if row else {})
    console.refuse_all_failed(summary, config)
