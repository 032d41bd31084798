#!/usr/bin/env bash
# Three steps of SFT and DPO with LLaMA-Factory on an export of `qwq-batch synthesize`:
#   infra/training/llamafactory.sh out/synthesize/export [MODEL]
# Needs llamafactory-cli on PATH; the page beside this script says how to install it.
set -euo pipefail
export_folder=$(realpath "$1")
model=${2:-$(dirname "$0")/../../pipeline/models/qwq-nano}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for stage in sft dpo; do
    dataset=synthetic_thinking
    if [ "$stage" = dpo ]; then dataset=synthetic_preference; fi
    llamafactory-cli train \
        --stage "$stage" --do_train true --model_name_or_path "$model" --finetuning_type full \
        --dataset_dir "$export_folder" --dataset "$dataset" --template qwen --cutoff_len 1024 \
        --max_steps 3 --per_device_train_batch_size 2 --logging_steps 1 --report_to none \
        --use_cpu true --output_dir "$out/$stage" --overwrite_cache true
    tail -n 4 "$out/$stage/trainer_log.jsonl"
done
