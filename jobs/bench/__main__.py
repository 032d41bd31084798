"""The command ``python -m jobs.bench``."""

import argparse
import os
from pathlib import Path

import jobs.bench
from jobs.bench import (
    agreement,
    contamination,
    engines,
    estimates,
    fleet,
    kv_cache,
    label_confidence,
    loops,
    moves,
    overhead,
    pools,
    queues,
    scale,
    slots,
    start,
    tails,
)
from pipeline.console import exit_with


def main() -> None:
    """Parse the command line, run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench",
        description=jobs.bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for results")
    commands = parser.add_subparsers(required=True, dest="command")

    sub = commands.add_parser("engines", help="this pipeline, raw vLLM and its peers")
    sub.add_argument("--setting", choices=engines.SETTINGS, default="small")
    sub.add_argument("--runs", type=int, default=5)
    sub.add_argument("--rows", type=int, help="in place of the setting's")
    sub.add_argument("--systems", default="raw,ours,ray.data.llm,ray.data.llm-small,run-batch")
    sub.add_argument("--add", action="store_true", help="add runs to the existing results")
    sub.add_argument(
        "--kill", action="store_true", help="kill each at half time; needs earlier runs"
    )
    sub.set_defaults(main=engines.main)

    sub = commands.add_parser("tails", help="how full simulated GPU engines are kept")
    sub.add_argument("--replicas", type=int, default=8)
    sub.add_argument("--rows", type=int, default=5000)
    sub.add_argument("--runs", type=int, default=3)
    sub.add_argument("--speed", type=float, default=20, help="simulated seconds per second")
    sub.add_argument("--ways", help="only these lines of the table, separated by semicolons")
    sub.set_defaults(main=tails.main)

    sub = commands.add_parser("queues", help="how full engines are kept, computed")
    sub.add_argument("--seeds", type=int, default=8)
    sub.set_defaults(main=queues.main)

    sub = commands.add_parser("pools", help="workers of unequal speed that share an output")
    sub.add_argument("--workers", default="2,8", help="sizes of the fleet, separated by commas")
    sub.add_argument("--rows", default="5,20,50,200", help="rows a slot, separated by commas")
    sub.add_argument("--seeds", type=int, default=1)
    sub.add_argument("--real", action="store_true", help="two processes, 50 rows a slot, 1:3")
    sub.set_defaults(main=pools.main)

    sub = commands.add_parser("fleet", help="64 workers of 8 engines: requests, boards, CPU time")
    sub.add_argument("--workers", default="4,16,64", help="sizes, separated by commas")
    sub.add_argument("--rows", type=int, default=30, help="rows a slot")
    sub.set_defaults(main=fleet.main)

    sub = commands.add_parser("moves", help="the last traces of engines moved to others, computed")
    sub.add_argument("--seeds", type=int, default=8)
    sub.set_defaults(main=moves.main)

    sub = commands.add_parser("kv-cache", help="slots and watermark against a KV cache, simulated")
    sub.set_defaults(main=kv_cache.main)

    sub = commands.add_parser("agreement", help="samples until enough agree, simulated")
    sub.add_argument("--rows", default="64,512", help="numbers of rows, separated by commas")
    sub.add_argument("--runs", type=int, default=5)
    sub.set_defaults(main=agreement.main)

    sub = commands.add_parser("slots", help="a real engine by its number of sequences")
    sub.add_argument("--setting", choices=("small", "qwq-32b"), default="small")
    sub.add_argument("--seconds", type=float, default=20, help="that count for each figure")
    sub.add_argument("--measure", help=argparse.SUPPRESS)
    sub.set_defaults(main=slots.main)

    sub = commands.add_parser("overhead", help="the pipeline's own cost, with an instant engine")
    sub.add_argument("--rows", type=int, default=40_000, help="rows of the smaller of two runs")
    sub.add_argument("--tokens", type=int, default=128, help="median tokens of a trace")
    sub.add_argument("--replicas", type=int, default=2)
    sub.add_argument("--runs", type=int, default=3)
    sub.set_defaults(main=overhead.main)

    sub = commands.add_parser("start", help="from the command to the first token")
    sub.add_argument("--replicas", type=int, default=1)
    sub.add_argument("--runs", type=int, default=3)
    sub.add_argument("--measure", help=argparse.SUPPRESS)
    sub.set_defaults(main=start.main)

    sub = commands.add_parser("estimates", help="estimates of pilots beside what the runs took")
    sub.set_defaults(main=estimates.main)

    sub = commands.add_parser("loops", help="what the loop detector finds in traces at hand")
    sub.add_argument("traces", help="the output of a run, or JSON lines with text and ended")
    sub.add_argument("--tokenizer", default="Qwen/QwQ-32B", help="of this model")
    sub.set_defaults(main=loops.main)

    sub = commands.add_parser("contamination", help="planted benchmark questions among seeds")
    sub.add_argument("--questions", type=int, default=500, help="of the benchmark")
    sub.add_argument("--seeds", type=int, default=2000, help="the planted ones included")
    sub.add_argument("--planted", type=int, default=50)
    sub.add_argument(
        "--index", type=int, default=20_000, help="questions to measure the speed with"
    )
    sub.set_defaults(main=contamination.main)

    sub = commands.add_parser("label_confidence", help="votes beside probabilities of a label")
    sub.set_defaults(main=label_confidence.main)

    sub = commands.add_parser("scale", help="planning and resuming ten million rows")
    sub.add_argument("--at", help="folder or URL for the data; default: below --out")
    sub.add_argument("--measure", help=argparse.SUPPRESS)
    sub.set_defaults(main=scale.main)

    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    exit_with(lambda: args.main(args, args.out) or 0)


if __name__ == "__main__":
    main()
