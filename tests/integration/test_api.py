"""The examples of API.md, in order, on the simulated engine."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder with the demo's config; only its engine is another, and its input is shorter."""
    shards = tmp_path / "configs/demo-prompts"
    shards.mkdir(parents=True)
    shutil.copy(ROOT / "configs/demo-prompts/prompts-00000.parquet", shards)
    config = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    simulated = {"tokens_median": 40, "seconds_per_token": 0}
    config["engine"] = {
        "kind": "simulated", "device": "cpu", "block_rows": 16, "simulated": simulated,
    }  # fmt: skip
    (tmp_path / "configs/demo.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    examples = EXAMPLE.findall((ROOT / "pipeline/API.md").read_text())
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "API.md", "exec"), names)
    assert len(examples) > 8
    printed = capsys.readouterr().out
    assert "60 of 60 rows to do" in printed
    assert "240 traces; " in printed
    assert "60 of 60 rows; running: False" in printed
    assert (tmp_path / "out/demo").is_dir()
