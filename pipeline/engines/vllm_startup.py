"""Why a vLLM engine did not start: the reason that its processes wrote, and what to do about it.

vLLM's front end raises only "Engine core initialization failed. See root cause above". The cause is
what the engine's own processes wrote before, among thousands of lines of a worker's log.
"""

import os
import re
from pathlib import Path

# What vLLM writes before a line, such as (EngineCore pid=7) ERROR 11-29 12:00:00 [core.py:9]
_PREFIX = re.compile(
    r"^(?:\([^()]*\bpid=\d+[^()]*\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
# The last line of a traceback.
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b(?:: .*)?$")
# The reasons of processes that only wait for others.
_SECOND_HAND = re.compile(
    r"initialization failed|See root cause|Failed core proc|Executor failed|^SystemExit|"
    r"^KeyboardInterrupt|EngineDeadError|cancelled"
)
# A process that ended without a traceback.
_NATIVE = re.compile(r"Bus error|Segmentation fault|Fatal Python error|CUDA error|NCCL WARN|Killed")
# What to do about some reasons.
_ADVICE = {
    r"available memory for the cache|KV cache is needed|tokens that can be stored in KV cache": (
        "lower engine.vllm.max_model_len, or raise engine.tensor_parallel or "
        "engine.vllm.gpu_memory_utilization"
    ),
    r"Free memory on device": (
        "another process holds memory of this GPU (nvidia-smi shows which): end it, or lower "
        "engine.vllm.gpu_memory_utilization"
    ),
    r"out of memory|OutOfMemoryError": (
        "raise engine.tensor_parallel, or lower engine.vllm.max_num_seqs or "
        "engine.vllm.gpu_memory_utilization"
    ),
    r"nvcc": "install the CUDA toolkit on this node, or set VLLM_USE_FLASHINFER_SAMPLER=0",
    r"driver version is insufficient|NVIDIA driver on your system is too old": (
        "update this node's NVIDIA driver (CUDA 13 needs R580), or install a vLLM for its CUDA"
    ),
    r"No CUDA GPUs|NVIDIA driver|libcuda|infer device type": (
        "no GPU can be seen on this node: check nvidia-smi, and --gpus all or the GPU operator"
    ),
    r"Bus error|/dev/shm|No space left on device|shared memory": (
        "give the container more shared memory: --shm-size=32g, or in Kubernetes an emptyDir with "
        "medium: Memory at /dev/shm"
    ),
    r"NCCL": "the GPUs can't reach each other: set NCCL_DEBUG=INFO and look at the workers' logs",
}
MOST_BYTES = 4 * 2**20
LONGEST = 600


class ProcessOutput:
    """What this process and those that it starts write from now on to stdout and stderr.

    Only where these are files, as in Ray's workers.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        for number in (1, 2):
            path = Path(os.path.realpath(f"/proc/self/fd/{number}"))
            if path.is_file():
                self._files[path] = path.stat().st_size

    def text(self) -> str:
        """All of it so far, or its last `MOST_BYTES`; stdout first, which is vLLM's log."""
        return "\n".join(_read_from(path, begin) for path, begin in self._files.items())


def _read_from(path: Path, begin: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(begin, path.stat().st_size - MOST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def root_cause(output: str, fallback: str) -> str:
    """The first reason in ``output``, else ``fallback``; with a line of advice if there is some."""
    lines = [_PREFIX.sub("", line).rstrip() for line in output.splitlines()]
    reasons = [line for line in lines if _EXCEPTION.match(line) and not _SECOND_HAND.search(line)]
    reasons += [line for line in lines if _NATIVE.search(line)]
    reason = (reasons or [fallback])[0][:LONGEST]
    advice = next((text for pattern, text in _ADVICE.items() if re.search(pattern, reason)), None)
    return reason if advice is None else f"{reason}\n{advice}"
