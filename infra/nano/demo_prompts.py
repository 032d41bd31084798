"""Write the demo's prompt shards: ``python -m infra.nano.demo_prompts configs/demo-prompts``.

240 rows in four shards: counting, adding, multiple choice, counting down, four prompts whose
thinking loops, and one row without a prompt. The first row asks about the strawberry.
"""

import random

import pyarrow as pa

from infra.nano.shards import write_shards
from infra.nano.tasks import (
    Task,
    choose,
    count_lines,
    countdown_task,
    loop_task,
    unseen_question,
    unseen_tasks,
)

SHARDS = 4
SCHEMA = pa.schema(
    [("id", pa.string()), ("kind", pa.string()), ("prompt", pa.string()), ("expected", pa.string())]
)


def demo_tasks(rng: random.Random) -> list[Task | None]:
    """The demo's 240 rows, in order; None is a row without a prompt."""
    lines, count = count_lines("strawberry", "r")
    strawberry = Task("count", 'How many r\'s are in the word "strawberry"?', lines, "", str(count))
    rest: list[Task | None] = [
        *unseen_tasks(rng, 174),
        *(_choice(rng) for _ in range(40)),
        *(countdown_task(rng, 150) for _ in range(20)),
        *(loop_task(rng) for _ in range(4)),
        None,
    ]
    rng.shuffle(rest)
    return [strawberry, *rest]


def _choice(rng: random.Random) -> Task:
    return choose(rng, *unseen_question(rng, "count" if rng.random() < 0.5 else "add"))


def main() -> None:
    """Write the shards to the folder on the command line."""
    rows = [
        {
            "id": f"demo-{i:03}",
            "kind": task.kind if task else "none",
            "prompt": task.prompt if task else None,
            "expected": task.expected if task else None,
        }
        for i, task in enumerate(demo_tasks(random.Random(7)))
    ]
    files = [f"prompts-{shard:05}.parquet" for shard in range(SHARDS)]
    write_shards(__doc__, files, pa.Table.from_pylist(rows, SCHEMA))


if __name__ == "__main__":
    main()
