"""Benchmarks: this pipeline against raw vLLM and its peers, long tails, overhead, scale.

    python -m jobs.bench engines        # vLLM by itself, this, ray.data.llm, vLLM's run-batch
    python -m jobs.bench tails          # simulated GPU engines: how full they are kept
    python -m jobs.bench queues         # the same, computed rather than run
    python -m jobs.bench overhead       # an engine that answers at once
    python -m jobs.bench scale          # ten million rows: to plan, and to go on

Each prints its table and writes it, with all its figures, below ``out/bench``.
"""
