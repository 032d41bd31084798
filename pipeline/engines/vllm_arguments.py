"""What the pipeline reads of vLLM's engine arguments, the dict ``engine.vllm``.

vLLM is not imported here: that takes from ten seconds to a minute. Its argument names are read
from its source.
"""

import ast
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines.memory import KEYS, MemoryNeed, is_known, kv_bytes_a_token, weight_bytes
from pipeline.engines.protocol import DEFAULT_SLOTS, TOKENS_A_REPORT, EngineType, probe_slots
from pipeline.errors import ConfigError
from pipeline.prompts.tokenizer import load_model_config, resolve_model

# Engine arguments that other settings, or the pipeline itself, decide.
RESERVED = {
    "model": "set model.path instead",
    "revision": "set model.revision instead",
    "tensor_parallel_size": "set engine.tensor_parallel instead",
    "enable_lora": "set model.lora instead",
    "tokenizer": "the model's own tokenizer renders the prompts",
    "pipeline_parallel_size": "set engine.pipeline_parallel instead",
    "hf_token": "do not write secrets into a config; set HF_TOKEN in the environment",
    "skip_tokenizer_init": "vLLM needs the tokenizer, to generate by a schema and to end a turn",
}
DATA_PARALLEL = "data_parallel"
# Values of ``load_format`` that need a package besides vLLM: its module, and vLLM's extra.
LOADERS = {
    "fastsafetensors": ("fastsafetensors", "fastsafetensors"),
    "instanttensor": ("instanttensor", "instanttensor"),
    "runai_streamer": ("runai_model_streamer", "runai"),
    "runai_streamer_sharded": ("runai_model_streamer", "runai"),
    "tensorizer": ("tensorizer", "tensorizer"),
}
# Arguments, and keys of ``hf_overrides``, that engine.context=auto decides.
CONTEXT_KEYS = (
    "max_model_len", "max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta",
)  # fmt: skip
# Arguments that change the rows, not only the speed.
RESULT_ARGS = (
    "dtype",
    "enable_lora",
    "hf_overrides",
    "kv_cache_dtype",
    "load_format",
    "max_model_len",
    "quantization",
    "structured_outputs_config",
)
# What the ranks of an engine are: ``mp``, processes of one node; ``ray``, actors on any.
BACKEND = "distributed_executor_backend"
# Speculation spends arithmetic that a step with few sequences leaves idle.
FEW_SLOTS = 32
V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
V1_SPECULATION = ("custom_class", "medusa", "mlp_speculator", "suffix")
CPU_WORKER = "pipeline.engines.vllm_cpu_worker.CpuWorker"
# vLLM's own 0 lets requests start that soon lose their place again, and are computed twice. In
# `python -m jobs.bench kv-cache`, 0.05 is half a percent faster and computes twice as much again.
WATERMARK = 0.1
# White space as Python and most texts write JSON; see llguidance's docs/json_schema.md.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# vLLM's default for the part of a GPU's memory that it uses.
GPU_SHARE = 0.92
# Memory besides weights and KV cache: activations, CUDA graphs, NCCL's buffers.
OVERHEAD_BYTES = 3 * 2**30


@cache
def engine_arg_names() -> frozenset[str] | None:
    """The fields of vLLM's ``AsyncEngineArgs``; None where vLLM is not installed."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py")
    classes = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.ClassDef)]
    return frozenset(
        field.target.id
        for node in classes
        if node.name in ("EngineArgs", "AsyncEngineArgs")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def check_engine_args(args: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a key of ``engine.vllm`` that is reserved or unknown to vLLM."""
    for name in args:
        if name in RESERVED:
            raise ConfigError(f"engine.vllm.{name}: {RESERVED[name]}")
        if name.startswith(DATA_PARALLEL):
            raise ConfigError(f"engine.vllm.{name}: not supported; set engine.replicas")
    slots = args.get("max_num_seqs", 1)
    if not isinstance(slots, int) or slots < 1:
        raise ConfigError(f"engine.vllm.max_num_seqs must be a whole number from 1, not {slots!r}")
    accepted = engine_arg_names()
    if accepted is None:
        return
    for name in args:
        if name not in accepted:
            # There are some two hundred, too many for a message.
            close = difflib.get_close_matches(name, accepted, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"engine.vllm.{name}: vLLM has no such engine argument{hint}")
    module, extra = LOADERS.get(str(args.get("load_format")), (None, None))
    if module is not None and find_spec(module) is None:
        raise ConfigError(
            f"engine.vllm.load_format {args['load_format']} needs the package {module}; install "
            f"vllm[{extra}] on every node"
        )


def context_tokens(engine: EngineConfig, default: int) -> int:
    """The most tokens that prompt and output may have together; ``default``: the model's own."""
    return int(engine.vllm.get("max_model_len") or default)


def watermark(engine: EngineConfig) -> float:
    """The share of the KV cache that is kept free when a request starts."""
    return float(engine.vllm.get("watermark", WATERMARK))


def _slow_seeds(engine: EngineConfig) -> str | None:
    """The setting that leads to vLLM's V1 model runner on a GPU, if there is one.

    Read in the sources of vLLM 0.30 to 0.32; not timed.
    """
    if engine.device != "gpu":
        return None
    if os.environ.get(V2_RUNNER) == "0":
        return f"{V2_RUNNER}=0"
    speculative = engine.vllm.get("speculative_config")
    method = speculative.get("method") if isinstance(speculative, dict) else None
    return f"engine.vllm.speculative_config {method}" if method in V1_SPECULATION else None


class VllmArguments(EngineType):
    """A kind of engine that takes its settings from ``engine.vllm``: vLLM, and its stand-in."""

    environment: Mapping[str, str] = {
        # To the log files of Ray's workers, not to the terminal.
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_NO_USAGE_STATS": "1",
        # The warm-up compiles FlashInfer's sampler, which without a CUDA toolkit ends the engine
        # (vllm-project/vllm#49497). Requests with a seed, as all are here, never use it.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    several_nodes_setting = f"engine.vllm.{BACKEND}=ray"
    model_code_setting = "engine.vllm.trust_remote_code=true"

    def check(self, engine: EngineConfig) -> None:
        """Raise `ConfigError` for an argument that vLLM does not have or that is not the user's."""
        super().check(engine)
        check_engine_args(engine.vllm)

    def slots(self, engine: EngineConfig) -> int:
        """VLLM's ``max_num_seqs``."""
        return int(engine.vllm.get("max_num_seqs", DEFAULT_SLOTS))

    def has_slots(self, engine: EngineConfig) -> bool:
        """Whether ``max_num_seqs`` is set."""
        return "max_num_seqs" in engine.vllm

    def with_slots(self, engine: EngineConfig, slots: int) -> EngineConfig:
        """``engine`` with ``max_num_seqs``."""
        return engine.model_copy(update={"vllm": {**engine.vllm, "max_num_seqs": slots}})

    def result_settings(self, engine: EngineConfig) -> dict[str, Any]:
        """Those of `RESULT_ARGS` that are set, and whether the model's code may run."""
        args = engine.vllm
        settings = {name: args[name] for name in RESULT_ARGS if name in args}
        if self.runs_model_code(engine):
            settings = {"trust_remote_code": True, **settings}
        return {f"engine.vllm.{name}": value for name, value in settings.items()}

    def with_context(
        self, engine: EngineConfig, tokens: int, rope: Mapping[str, Any] | None
    ) -> EngineConfig:
        """``engine`` with the arguments for a context of ``tokens``."""
        args = {key: value for key, value in engine.vllm.items() if value is not None}
        overrides = args.get("hf_overrides") or {}
        if not isinstance(overrides, dict):
            raise ConfigError("engine.vllm.hf_overrides must be a mapping")
        if taken := [key for key in CONTEXT_KEYS if key in {**args, **overrides}]:
            raise ConfigError(
                f"engine.vllm has {', '.join(taken)}, which engine.context=auto sets; remove it "
                f"(--set engine.vllm.{taken[0]}=null), or set engine.context=native"
            )
        args["max_model_len"] = tokens
        if rope is not None:
            stretched = {"rope_parameters": dict(rope), "max_position_embeddings": tokens}
            args["hf_overrides"] = {**overrides, **stretched}
        return engine.model_copy(update={"vllm": args})

    def yarn_factor(self, engine: EngineConfig) -> float | None:
        """The factor in ``hf_overrides``."""
        overrides = engine.vllm.get("hf_overrides")
        rope = overrides.get("rope_parameters") if isinstance(overrides, dict) else None
        if not isinstance(rope, dict) or rope.get("rope_type") != "yarn":
            return None
        return float(rope["factor"])

    def spans_nodes(self, engine: EngineConfig) -> bool | None:
        """As the user's backend says; without one, only where no node has enough GPUs."""
        if engine.device == "cpu":
            return False
        return engine.vllm[BACKEND] == "ray" if BACKEND in engine.vllm else None

    def over_nodes(self, engine: EngineConfig) -> EngineConfig:
        """``engine`` with vLLM's Ray backend."""
        return engine.model_copy(update={"vllm": {**engine.vllm, BACKEND: "ray"}})

    def runs_model_code(self, engine: EngineConfig) -> bool:
        """VLLM's ``trust_remote_code``."""
        return bool(engine.vllm.get("trust_remote_code"))

    def warnings(self, engine: EngineConfig) -> Iterator[str]:
        """Warn of ``trust_remote_code``, and of what makes seeded requests slow."""
        if self.runs_model_code(engine):
            yield (
                "engine.vllm.trust_remote_code: code that comes with the model runs on every node; "
                "set model.revision to the commit that you have read"
            )
        if engine.vllm.get("speculative_config") and self.slots(engine) > FEW_SLOTS:
            yield (
                "engine.vllm.speculative_config helps engines with few sequences; with "
                f"{self.slots(engine)} slots, compare the tokens/s with and without it"
            )
        if reason := _slow_seeds(engine):
            yield (
                f"{reason} makes vLLM use its V1 model runner, in which each row with a seed is a "
                "kernel of its own: milliseconds a step with hundreds of slots"
            )

    def plan_lines(self, engine: EngineConfig) -> Iterator[str]:
        """The arguments as JSON, if there are any."""
        if engine.vllm:
            yield f"vllm      {json.dumps(engine.vllm)}"


def memory_need(engine: EngineConfig, model: Mapping[str, Any]) -> MemoryNeed | None:
    """What a vLLM engine takes of its GPUs' memory; ``model``: its config.json; None: unknown.

    Weights quantized by an unknown method count as if they were not quantized. A draft model of
    ``speculative_config`` counts too; raises `ModelError` if its config.json can't be read.
    """
    if not all(name in model for name in KEYS):
        return None
    args = engine.vllm
    quantization, token = args.get("quantization"), kv_bytes_a_token(model)
    if str(args.get("kv_cache_dtype", "auto")).startswith("fp8"):
        token /= 2
    weights = weight_bytes(model, quantization)
    if draft := _draft_model(args):
        weights, token = weights + weight_bytes(draft), token + kv_bytes_a_token(draft)
    return MemoryNeed(
        weights=weights,
        overhead=OVERHEAD_BYTES,
        token=token,
        context=context_tokens(engine, int(model["max_position_embeddings"])),
        gpu_share=float(args.get("gpu_memory_utilization", GPU_SHARE)),
        is_exact=is_known(model, quantization),
        context_setting="engine.vllm.max_model_len",
    )


def _draft_model(args: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config.json of a model that drafts for speculation; None without one."""
    speculative = args.get("speculative_config")
    if not isinstance(speculative, dict) or speculative.get("model") is None:
        return None
    return load_model_config(str(speculative["model"]), speculative.get("revision"))


def engine_arguments(config: RunConfig) -> dict[str, Any]:
    """The keyword arguments of ``AsyncEngineArgs``. The user's win over the pipeline's."""
    args: dict[str, Any] = {
        "model": resolve_model(config.model.path),
        "revision": config.model.revision,
        "tensor_parallel_size": config.engine.tensor_parallel,
        "pipeline_parallel_size": config.engine.pipeline_parallel,
        "enable_prefix_caching": True,
        # Statistics take 5 % of a small model's speed on two cores, and next to nothing on a GPU.
        "disable_log_stats": config.engine.device == "cpu",
        "max_num_seqs": DEFAULT_SLOTS,
        "stream_interval": TOKENS_A_REPORT,
        "watermark": WATERMARK,
    }
    if config.engine.ranks > 1:
        # Processes of this node need no placement group. See `pipeline.execution.placement`.
        args[BACKEND] = "mp"
    if config.model.lora is not None:
        args["enable_lora"] = True
    if config.answer.schema_text is not None:
        # llguidance supports more of JSON Schema than xgrammar. Free white space lets a model loop.
        args["structured_outputs_config"] = {"backend": "guidance", "disable_any_whitespace": True}
    if config.engine.device == "cpu":
        # A seeded request whose prompt is cut in chunks ends the engine on CPU: the model runner
        # winds its random generator back, and PyTorch's CPU generator "does not use offset".
        args["enable_chunked_prefill"] = False
        args["worker_extension_cls"] = CPU_WORKER
    args |= config.engine.vllm
    slots = int(args["max_num_seqs"])
    return {**args, "max_num_seqs": slots + probe_slots(config, slots)}


def spaced_schema(text: str) -> dict[str, Any]:
    """The JSON Schema in ``text``, with the white space in which `guidance` is to generate."""
    schema = json.loads(text)
    return {**schema, "x-guidance": {**SPACING, **schema.get("x-guidance", {})}}
