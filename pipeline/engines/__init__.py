"""Engines: what an actor asks of one, the real one (vLLM) and a simulated one.

Only `pipeline.engines.vllm` imports vLLM, and only when a vLLM engine is built.
"""

from pipeline.engines.protocol import Engine, Report, Request

__all__ = ["Engine", "Report", "Request"]
