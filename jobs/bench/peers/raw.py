"""vLLM alone: all rows at once, all output at the end."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.peers import spec


def main() -> None:
    """Read, generate, write."""
    from vllm import LLM, SamplingParams

    given = spec()
    rows = pq.read_table(given["prompts"])
    engine = LLM(model=given["model"], **given["engine"])
    chats: list[Any] = [
        [{"role": "user", "content": prompt}] for prompt in rows["prompt"].to_pylist()
    ]
    outputs = engine.chat(
        chats,
        [
            SamplingParams(**given["sampling"], seed=seed if given["seeded"] else None)
            for seed in range(rows.num_rows)
        ],
        use_tqdm=False,
    )
    texts = pa.array([output.outputs[0].text for output in outputs])
    tokens = pa.array([len(output.outputs[0].token_ids) for output in outputs], pa.int64())
    table = rows.append_column("text", texts).append_column("output_tokens", tokens)
    folder = Path(given["output"])
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "all.parquet")


if __name__ == "__main__":
    main()
