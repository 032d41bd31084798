"""Why an engine did not start, from what its processes wrote."""

import os
from pathlib import Path

import pytest

from pipeline.engines.vllm_startup import MOST_BYTES, ProcessOutput, root_cause

FALLBACK = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
CORE = "(EngineCore pid=71) ERROR 11-29 12:00:00 [core.py:1155] "
WORKER = "(Worker_TP1 pid=93) ERROR 11-29 12:00:00 [multiproc_executor.py:871] "
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n'
NVCC = "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"


def written(prefix: str, *lines: str) -> str:
    return "".join(f"{prefix}{line}\n" for text in lines for line in text.splitlines())


@pytest.mark.parametrize(
    ("output", "reason", "advice"),
    [
        (
            written(CORE, "EngineCore failed to start.", TRACEBACK, NVCC)
            + written("", "Process EngineCore:", TRACEBACK, NVCC),
            NVCC,
            "set VLLM_USE_FLASHINFER_SAMPLER=0",
        ),
        (
            written(WORKER, "WorkerProc failed to start.", TRACEBACK,
                    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
            + written(CORE, TRACEBACK, "Exception: WorkerProc initialization failed due to an "
                      "exception in a background process. See stack trace for root cause."),
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "raise engine.tensor_parallel",
        ),
        (
            written(CORE, TRACEBACK, "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on "
                    "startup is less than desired GPU memory utilization (0.92, 72.9 GiB)."),
            "ValueError: Free memory on device cuda:0",
            "another process holds memory of this GPU",
        ),
        (
            written(CORE, TRACEBACK, "ValueError: No available memory for the cache blocks. Try "
                    "increasing `gpu_memory_utilization` when initializing the engine."),
            "ValueError: No available memory for the cache blocks.",
            "lower engine.vllm.max_model_len",
        ),
        (
            "Fatal Python error: Bus error\n\nThread 0x00007f (most recent call first):\n",
            "Fatal Python error: Bus error",
            "more shared memory",
        ),
        (
            written(CORE, TRACEBACK, "RuntimeError: The NVIDIA driver on your system is too old "
                    "(found version 12020)."),
            "RuntimeError: The NVIDIA driver",
            "CUDA 13 needs R580",
        ),
        ("INFO 11-29 12:00:00 [core.py:1] starting\n", FALLBACK, None),
        ("", FALLBACK, None),
    ],
)  # fmt: skip
def test_first_reason_is_told_with_what_to_do(output: str, reason: str, advice: str | None) -> None:
    told, _, what_to_do = root_cause(output, FALLBACK).partition("\n")
    assert told.startswith(reason)
    if advice is None:
        assert what_to_do == ""
    else:
        assert advice in what_to_do


def test_output_is_that_of_this_process_since_then(tmp_path: Path) -> None:
    """Of a process whose output goes to files, as a worker's of Ray does."""
    log = tmp_path / "log"
    log.write_text("before\n")
    pid = os.fork()
    if pid == 0:
        file = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        output = ProcessOutput()
        os.write(1, b"x" * MOST_BYTES + b"\nafter\n")
        os._exit(0 if output.text().endswith("after\n") and "before" not in output.text() else 1)
    assert os.waitpid(pid, 0)[1] == 0
