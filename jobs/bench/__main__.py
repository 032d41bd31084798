"""The command ``python -m jobs.bench``."""

import argparse
import os
from pathlib import Path

import jobs.bench
from jobs.bench import engines, estimates, overhead, queues, scale, start, tails
from pipeline.console import exit_with


def main() -> None:
    """Parse the command line, run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench",
        description=jobs.bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="where results go")
    commands = parser.add_subparsers(required=True, dest="command")

    sub = commands.add_parser("engines", help="this pipeline, raw vLLM and its peers")
    sub.add_argument("--setting", choices=engines.SETTINGS, default="small")
    sub.add_argument("--runs", type=int, default=5)
    sub.add_argument("--rows", type=int, help="instead of the setting's")
    sub.add_argument("--systems", default="raw,ours,ray.data.llm,ray.data.llm-small,run-batch")
    sub.add_argument("--add", action="store_true", help="to the runs that are there")
    sub.add_argument("--kill", action="store_true", help="each in the middle, after such runs")
    sub.set_defaults(main=engines.main)

    sub = commands.add_parser("tails", help="how full simulated GPU engines are kept")
    sub.add_argument("--replicas", type=int, default=8)
    sub.add_argument("--rows", type=int, default=5000)
    sub.add_argument("--runs", type=int, default=3)
    sub.add_argument("--speed", type=float, default=20, help="how much faster than life")
    sub.add_argument("--ways", help="some of the table's, with semicolons between them")
    sub.set_defaults(main=tails.main)

    sub = commands.add_parser("queues", help="how rows wait at engines, computed")
    sub.add_argument("--seeds", type=int, default=8)
    sub.set_defaults(main=queues.main)

    sub = commands.add_parser("overhead", help="an engine that answers at once")
    sub.add_argument("--rows", type=int, default=40_000, help="of the smaller of two runs")
    sub.add_argument("--tokens", type=int, default=128, help="of a trace, in the median")
    sub.add_argument("--replicas", type=int, default=2)
    sub.add_argument("--runs", type=int, default=3)
    sub.set_defaults(main=overhead.main)

    sub = commands.add_parser("start", help="from the command to the first token")
    sub.add_argument("--replicas", type=int, default=1)
    sub.add_argument("--runs", type=int, default=3)
    sub.add_argument("--measure", help=argparse.SUPPRESS)
    sub.set_defaults(main=start.main)

    sub = commands.add_parser("estimates", help="what estimate says, and what runs take")
    sub.set_defaults(main=estimates.main)

    sub = commands.add_parser("scale", help="ten million rows: to plan, and to go on")
    sub.add_argument("--at", help="a folder of any storage; without it, below --out")
    sub.add_argument("--measure", help=argparse.SUPPRESS)
    sub.set_defaults(main=scale.main)

    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    exit_with(lambda: args.main(args, args.out) or 0)


if __name__ == "__main__":
    main()
