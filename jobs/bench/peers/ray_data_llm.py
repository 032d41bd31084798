"""Ray's own batch processor, set up as its documentation advises.

With ``small_blocks`` in the spec, its batches and blocks have 16 rows, so that finished rows reach
the disk sooner.
"""

from typing import Any

import ray
import ray.data
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from jobs.bench.peers import spec

SMALL = 16


def main() -> None:
    """Read, generate, write."""
    given = spec()
    slots = given["engine"]["max_num_seqs"]
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    small = given["small_blocks"]
    batch = SMALL if small else 32

    def request(row: dict[str, Any]) -> dict[str, Any]:
        seed = {"seed": int(row["id"])} if given["seeded"] else {}
        return {
            "messages": [{"role": "user", "content": row["prompt"]}],
            "sampling_params": {**given["sampling"], **seed},
        }

    def result(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": row["id"],
            "prompt": row["prompt"],
            "text": row["generated_text"],
            "output_tokens": row["num_generated_tokens"],
        }

    config = vLLMEngineProcessorConfig(
        model_source=given["model"],
        engine_kwargs=given["engine"],
        concurrency=(1, 1),
        batch_size=batch,
        max_concurrent_batches=max(8, 4 * slots // batch if small else 0),
        accelerator_type=None,
        placement_group_config={"bundles": [{given["device"].upper(): 1}]},
        log_engine_metrics=False,
    )
    rows = ray.data.read_parquet(given["prompts"])
    if small:
        rows = rows.repartition(target_num_rows_per_block=SMALL)
    build_processor(config, preprocess=request, postprocess=result)(rows).write_parquet(
        given["output"]
    )


if __name__ == "__main__":
    main()
