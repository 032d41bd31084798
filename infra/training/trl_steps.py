"""Train a model for a few steps on an export of `qwq-batch synthesize`, with TRL: SFT, DPO, GRPO.

    python -m infra.training.trl_steps out/synthesize/export

It shows that TRL reads the export as it is. The page beside this module says how to install TRL.
"""

import argparse
import tempfile
from importlib import import_module
from typing import Any

import datasets

from pipeline.prompts.tokenizer import BUILT_IN

COMMON = {
    "max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no",
    "report_to": "none", "use_cpu": True, "bf16": False,
}  # fmt: skip


def train(export: str, model: str, method: str, folder: str) -> list[dict[str, Any]]:
    """What the trainer of ``method`` logs at each step; ``folder``: for what it writes."""
    trl: Any = import_module("trl")
    config = {"sft": "thinking", "dpo": "preference", "grpo": "rl"}[method]
    data = datasets.load_dataset(export, config, cache_dir=f"{folder}/cache")
    print(f"{method}: {data['train'].num_rows:,} rows, columns {', '.join(data['train'].features)}")
    more: dict[str, Any] = {}
    if method == "sft":
        args = trl.SFTConfig(folder, max_length=1024, **COMMON)
    elif method == "dpo":
        args = trl.DPOConfig(folder, max_length=1024, **COMMON)
    else:
        args = trl.GRPOConfig(folder, num_generations=2, max_completion_length=768, **COMMON)
        more["reward_funcs"] = import_module("trl.rewards").accuracy_reward
    trainer = getattr(trl, f"{method.upper()}Trainer")(
        model=model, args=args, train_dataset=data["train"], **more
    )
    trainer.train()
    logged: list[dict[str, Any]] = [step for step in trainer.state.log_history if "loss" in step]
    return logged


def main() -> None:
    """Three steps of each method; prints the loss of each, and the rewards where there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", help="the folder export of a job's output")
    parser.add_argument("--model", default=str(BUILT_IN / "qwq-nano"))
    parser.add_argument("--methods", default="sft,dpo,grpo")
    args = parser.parse_args()
    for method in args.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            steps = train(args.export, args.model, method, folder)
        losses = ", ".join(f"{step['loss']:.4f}" for step in steps)
        rewards = [f"{step['reward']:.2f}" for step in steps if "reward" in step]
        found = f", rewards {', '.join(rewards)}" if rewards else ""
        print(f"{method}: {len(steps)} steps, losses {losses}{found}")


if __name__ == "__main__":
    main()
