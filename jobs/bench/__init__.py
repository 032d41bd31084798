"""Benchmarks: this pipeline beside raw vLLM and its peers, long tails, overhead, scale.

    python -m jobs.bench engines        # vLLM alone, this pipeline, ray.data.llm, vLLM's run-batch
    python -m jobs.bench tails          # how full simulated GPU engines are kept
    python -m jobs.bench queues         # the same, computed instead of run
    python -m jobs.bench pools          # workers of unequal speed that share an output
    python -m jobs.bench fleet          # 64 workers: requests, boards, CPU time
    python -m jobs.bench moves          # the last traces of engines moved to others, computed
    python -m jobs.bench agreement      # samples of a row until enough agree, simulated
    python -m jobs.bench overhead       # the pipeline's own cost, with an instant engine
    python -m jobs.bench start          # from the command to the first token
    python -m jobs.bench estimates      # estimates of pilots beside what the runs took
    python -m jobs.bench label_confidence   # votes beside probabilities of a label
    python -m jobs.bench loops          # what the loop detector finds in traces at hand
    python -m jobs.bench scale          # planning and resuming ten million rows

Each prints its table, and writes the table and all figures below ``out/bench``.
"""
