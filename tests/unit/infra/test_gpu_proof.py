"""What is packed for a machine without a network arrives there whole, or not at all."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from infra.gpu_proof.pack import missing, split

UNPACK = Path(__file__).parents[3] / "infra" / "gpu_proof" / "unpack.sh"
METADATA = "Metadata-Version: 2.1\nName: packed\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def pieces_of_a_wheel(folder: Path) -> Path:
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "packed-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("packed.py", "VALUE = 1\n")
        for name, text in {"METADATA": METADATA, "WHEEL": WHEEL, "RECORD": ""}.items():
            wheel.writestr(f"packed-1.0.dist-info/{name}", text)
    subprocess.run(["tar", "-cf", "wheels.tar", "wheels"], cwd=folder, check=True)
    pieces = folder / "pieces"
    pieces.mkdir()
    assert len(split(folder / "wheels.tar", pieces, 4000)) > 2
    return pieces


def unpack(pieces: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(UNPACK), str(pieces), str(site)], capture_output=True, text=True)


def test_pieces_are_joined_and_installed(tmp_path: Path) -> None:
    done = unpack(pieces_of_a_wheel(tmp_path), tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"export PYTHONPATH={tmp_path / 'site'}"
    assert (tmp_path / "site" / "packed.py").read_text() == "VALUE = 1\n"


@pytest.mark.parametrize("harm", ["damaged", "lost"])
def test_piece_that_is_damaged_or_lost_is_named(tmp_path: Path, harm: str) -> None:
    pieces = pieces_of_a_wheel(tmp_path)
    if harm == "lost":
        (pieces / "piece-001").unlink()
    else:
        (pieces / "piece-001").write_bytes(b"x" * 4000)
    done = unpack(pieces, tmp_path / "site")
    assert done.returncode != 0
    assert "piece-001" in done.stderr + done.stdout
    assert not (tmp_path / "site").exists()


def test_what_the_machine_has_is_not_packed() -> None:
    pinned = [
        "vllm==0.26.0", "numpy==2.3.5", "torch==2.11.0", "nvidia-cublas==13.1", "PyYAML==6.0",
        "torchvision==0.26.0", "typing-extensions==4.16", "nvidia-cutlass-dsl==4.1",
    ]  # fmt: skip
    assert missing(pinned, "numpy==2.5.2\ntyping_extensions==4.1\n") == [
        "vllm==0.26.0", "PyYAML==6.0", "nvidia-cutlass-dsl==4.1",
    ]  # fmt: skip
