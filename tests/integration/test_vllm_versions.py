"""The oldest and the newest vLLM that is supported have the names that the pipeline uses."""

import re
import tarfile
from http.client import HTTPException
from pathlib import Path

import pytest

from infra.vllm_names import download, missing
from pipeline.engines.vllm import VLLM

OLDEST, NEWEST = "0.24.0", "0.33.0"


def test_these_are_the_ends_of_the_supported_range() -> None:
    low, high = re.findall(r"\d+\.(\d+)", VLLM.supported_versions)
    assert (f"0.{low}.0", f"0.{int(high) - 1}.0") == (OLDEST, NEWEST)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_version_has_all_names(version: str, tmp_path: Path) -> None:
    try:
        source = download(version, tmp_path)
    except FileNotFoundError:
        raise
    except (OSError, HTTPException, tarfile.TarError) as error:
        pytest.skip(f"no package index can be reached: {error}")
    assert missing(source) == []


def test_names_that_are_gone_are_named(tmp_path: Path) -> None:
    assert "vllm.v1.engine.async_llm.AsyncLLM.generate" in missing(tmp_path)
    assert "engine argument quantization" in missing(tmp_path)
