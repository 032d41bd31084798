"""Pack what a machine without a network lacks to run the pipeline on its GPU, in small pieces.

    python -m infra.gpu_proof.pack out/pieces --have freeze.txt --python 3.12 --vllm 0.26.0

``freeze.txt`` is `pip freeze` of that machine. What it has is not packed, whatever the version: its
PyTorch must be the one that this vLLM was built for. The checkout itself is not packed either.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

MIB = 2**20
# vLLM lists them, and text does not need them; or they hold kernels for other models.
NOT_NEEDED = {
    "flashinfer-cubin", "opencv-python-headless", "torchaudio", "torchcodec", "torchvision",
}  # fmt: skip
# What PyTorch's own build for CUDA 13 requires.
WITH_TORCH = {
    "torch", "triton", "cuda-toolkit", "nvidia-cublas", "nvidia-cuda-cupti", "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-cufile", "nvidia-curand",
    "nvidia-cusolver", "nvidia-cusparse", "nvidia-cusparselt-cu13", "nvidia-nccl-cu13",
    "nvidia-nvjitlink", "nvidia-nvshmem-cu13", "nvidia-nvtx",
}  # fmt: skip
GLIBCS = (39, 36, 35, 34, 31, 28, 27, 24, 17, 12, 5)


def requirements(python: str, vllm: str) -> list[str]:
    """All that the pipeline and this vLLM need there, pinned."""
    wanted = f"vllm=={vllm}\nray[data]==2.60.0\n" + _of_the_project()
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-annotate",
        "--no-header", "--python-version", python, "--python-platform", "x86_64-manylinux_2_28",
    ]  # fmt: skip
    done = subprocess.run(command, input=wanted, capture_output=True, text=True, check=True)  # noqa: S603 (no input in it)
    return [line.split(";")[0].strip() for line in done.stdout.splitlines() if "==" in line]


def _of_the_project() -> str:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    return "\n".join(project["dependencies"])


def missing(pinned: Iterable[str], have: str) -> list[str]:
    """Those of ``pinned`` that are not in ``have``, the output of `pip freeze`."""
    there = {_name(line) for line in have.splitlines() if line.strip()} | NOT_NEEDED
    return [line for line in pinned if _name(line) not in there | WITH_TORCH]


def _name(requirement: str) -> str:
    return re.split(r"[=<>\[ @;]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def download(wanted: Iterable[str], python: str, folder: Path) -> None:
    """Put the wheels of ``wanted`` into ``folder``."""
    platforms = [f"manylinux_2_{n}_x86_64" for n in GLIBCS] + ["manylinux2014_x86_64", "any"]
    flags = [word for name in platforms for word in ("--platform", name)]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--python-version", python, "--implementation", "cp", *flags, "-d", str(folder), *wanted,
    ]  # fmt: skip
    subprocess.run(command, check=True)  # noqa: S603 (no input in it)


def split(archive: Path, folder: Path, size: int) -> list[Path]:
    """Cut ``archive`` into pieces of ``size`` bytes, with a list of their checksums."""
    pieces, sums = list[Path](), list[str]()
    with archive.open("rb") as file:
        while data := file.read(size):
            piece = folder / f"piece-{len(pieces):03}"
            piece.write_bytes(data)
            pieces.append(piece)
            sums.append(f"{sha256(data).hexdigest()}  {piece.name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    return pieces


def main() -> None:
    """Resolve, download, pack and cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--have", type=Path, required=True, help="pip freeze of the machine")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--vllm", default="0.26.0")
    parser.add_argument("--piece-mib", type=int, default=60)
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    wheels = args.folder / "wheels"
    wheels.mkdir(parents=True)
    wanted = missing(requirements(args.python, args.vllm), args.have.read_text())
    download(wanted, args.python, wheels)
    archive = args.folder / "wheels.tar"
    with tarfile.open(archive, "w") as tar:  # wheels are compressed already
        tar.add(wheels, "wheels")
    shutil.copy(Path(__file__).with_name("unpack.sh"), args.folder)
    pieces = split(archive, args.folder, args.piece_mib * MIB)
    archive.unlink()
    shutil.rmtree(wheels)
    size = sum(piece.stat().st_size for piece in pieces) / MIB
    print(f"{len(wanted)} packages, {size:,.0f} MiB in {len(pieces)} pieces in {args.folder}")


if __name__ == "__main__":
    main()
