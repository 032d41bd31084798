"""What vLLM's processes on a CPU need, imported once: see `pipeline.engines.vllm._fork_server`."""

import importlib
import os

# The engine's process forks its workers in turn.
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
for _name in ("v1.engine.core", "v1.worker.cpu_worker", "model_executor.models.qwen2"):
    importlib.import_module(f"vllm.{_name}")
