"""The vLLM engine: the only module that imports vLLM, and only when an engine is built.

Written against what vLLM 0.26 to 0.33 share (``vllm.v1.engine.async_llm.AsyncLLM``).
"""

import ast
import asyncio
import json
import os
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import BACKEND
from pipeline.engines.protocol import TOKENS_A_REPORT, EngineLoad, Report, Request
from pipeline.errors import ConfigError, EngineDeadError, ModelError, RequestRejectedError
from pipeline.prompts.tokenizer import resolve_model
from pipeline.reasoning.sampling import SamplingPolicy, continued_seed

# With white space as Python and most texts write JSON; see llguidance's docs/json_schema.md.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Engine arguments that are not the user's to set, and why.
OURS = {
    "model": "set model.path instead",
    "revision": "set model.revision instead",
    "tensor_parallel_size": "set engine.tensor_parallel instead",
    "enable_lora": "set model.lora instead",
    "tokenizer": "the model's own tokenizer renders the prompts",
    "pipeline_parallel_size": "set engine.pipeline_parallel instead",
    "data_parallel_size": "not supported; set engine.replicas",
    "hf_token": "a config is no place for it; set HF_TOKEN in the environment",
}
REQUEST_TRIES = 2


def engine_arg_names() -> frozenset[str] | None:
    """The fields of vLLM's ``AsyncEngineArgs``; None where vLLM is not installed.

    They are read from its source, because importing vLLM takes from ten seconds to a minute.
    """
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


def check_engine_args(args: dict[str, Any]) -> None:
    """Raise `ConfigError` for a key of ``engine.vllm`` that is ours or that vLLM does not have."""
    import difflib

    for name in args:
        if name in OURS:
            raise ConfigError(f"engine.vllm.{name}: {OURS[name]}")
    slots = args.get("max_num_seqs", 1)
    if not isinstance(slots, int) or slots < 1:
        raise ConfigError(f"engine.vllm.max_num_seqs must be a whole number from 1, not {slots!r}")
    accepted = engine_arg_names()
    if accepted is None:
        return
    for name in args:
        if name not in accepted:
            close = difflib.get_close_matches(name, accepted, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"engine.vllm.{name}: vLLM has no such engine argument{hint}")


class VllmEngine:
    """One vLLM engine; its work runs in processes of its own, its front end in this one's loop."""

    def __init__(self, config: RunConfig, slots: int) -> None:
        self._stats: Any = None
        self._requests = 0
        if config.engine.device == "cpu":
            _prepare_cpu(config.engine.tensor_parallel)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ModelError(
                f"vLLM can't be imported ({error}); install qwq-batch[gpu] or qwq-batch[cpu]"
            ) from None
        try:
            arguments = AsyncEngineArgs(**_arguments(config, slots))
            listeners = None if arguments.disable_log_stats else self._listeners()
            self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=listeners)
        except Exception as error:  # vLLM, PyTorch and the hub raise all kinds
            raise ModelError(f"the engine did not start: {error}") from error
        self._slots = slots
        self._checking, self._unchecked = asyncio.Lock(), config.answer.schema_text
        # Tokens of all prompts, carried ones too, and how many were in the prefix cache.
        self.prompt_tokens = self.cached_tokens = 0
        self._lora = None
        if config.model.lora is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("adapter", 1, config.model.lora)

    def _listeners(self) -> list[Any]:
        """What vLLM tells of each step: the scheduler's figures are kept, all go to Ray."""
        import ray.util.metrics
        from vllm.v1.metrics import ray_wrappers
        from vllm.v1.metrics.loggers import StatLoggerBase

        engine = self
        # vLLM looks for it together with Ray Serve, which need not be there.
        vars(ray_wrappers)["ray_metrics"] = ray.util.metrics

        class Listener(StatLoggerBase):
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    engine._stats = scheduler_stats

            def log_engine_initialized(self) -> None:
                pass

        return [Listener, ray_wrappers.RayPrometheusStatLogger]

    @property
    def load(self) -> EngineLoad:
        """What vLLM's scheduler said at its last step; where it says nothing, by our own count."""
        stats = self._stats
        if stats is None:
            running = min(self._requests, self._slots)
            return EngineLoad(running, self._requests - running)
        return EngineLoad(stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage)

    @property
    def context_tokens(self) -> int:
        """VLLM's ``max_model_len``."""
        return int(self._engine.vllm_config.model_config.max_model_len)

    @property
    def slots(self) -> int:
        """VLLM's ``max_num_seqs``."""
        return self._slots

    async def generate(self, request: Request, report: Report) -> str:
        """Run one request to its end; see `Engine.generate`."""
        token_ids = list(request.carried_token_ids)
        whole = request.schema is not None  # a grammar can't go on from the middle
        await self._check_schema(request.policy)

        def keep(new: Sequence[int]) -> bool:
            token_ids.extend(new)
            return not whole and report(new)

        for _ in range(REQUEST_TRIES):
            # What a given up try has brought is kept: the next goes on from there.
            reason = await self._try(request, token_ids, keep)
            if reason is not None:
                if whole:
                    report(token_ids[len(request.carried_token_ids) :])
                return reason
            if self._engine.errored:
                raise EngineDeadError("vLLM has stopped")
            if whole:
                del token_ids[len(request.carried_token_ids) :]
        raise RequestRejectedError(f"vLLM gave this request up {REQUEST_TRIES} times")

    async def _try(self, request: Request, token_ids: list[int], report: Report) -> str | None:
        """One attempt; None if vLLM gives the request up, the engine dead or alive."""
        import vllm.exceptions
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead
        from vllm.v1.engine.exceptions import EngineGenerateError as VllmBroken

        refused = (ValueError, getattr(vllm.exceptions, "VLLMClientError", ValueError))
        left = self._tokens_left(request, len(token_ids))
        if left < 1:
            return "length"
        prompt = TokensPrompt(prompt_token_ids=[*request.prompt_token_ids, *token_ids])
        params = self._params(request, continued_seed(request.seed, len(token_ids)), left)
        reason, cached = None, 0
        self._requests += 1
        try:
            outputs = self._engine.generate(
                prompt, params, f"{request.id}:{uuid.uuid4().hex[:8]}", lora_request=self._lora
            )
            async with aclosing(outputs):  # to leave it early aborts the request
                async for output in outputs:
                    [completion] = output.outputs
                    looped = report(completion.token_ids)
                    reason = completion.finish_reason
                    cached = output.num_cached_tokens or 0
                    if looped and reason is None:
                        reason = "repetition"
                        break
            self.prompt_tokens += len(prompt["prompt_token_ids"])
            self.cached_tokens += cached
        except VllmDead as error:
            raise EngineDeadError(str(error)) from error
        except VllmBroken:
            return None
        except refused as error:
            raise RequestRejectedError(str(error)) from error
        finally:
            self._requests -= 1
        return None if reason in ("abort", "error") else reason

    def close(self) -> None:
        """Shut the engine's processes down; the front end stops listening first."""
        handler = getattr(self._engine, "output_handler", None)
        if isinstance(handler, asyncio.Task):
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        self._engine.shutdown()

    def _tokens_left(self, request: Request, generated: int) -> int:
        whole = min(request.policy.max_tokens, self.context_tokens - len(request.prompt_token_ids))
        return whole - generated

    async def _check_schema(self, policy: SamplingPolicy) -> None:
        """Generate a token by the schema first: else each row would think before it is refused."""
        async with self._checking:
            if self._unchecked is not None:
                one_token = policy.model_copy(update={"max_tokens": 1})
                trial = Request("schema", (0,), (), one_token, 0)
                try:
                    await self._try(replace(trial, schema=self._unchecked), [], lambda _: False)
                except RequestRejectedError as error:
                    raise ModelError(
                        f"vLLM can't generate by answer.json_schema: {error}"
                    ) from None
                self._unchecked = None

    def _params(self, request: Request, seed: int, max_tokens: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        grammar = None
        if request.schema is not None:
            schema = json.loads(request.schema)
            spacing = {**SPACING, **schema.get("x-guidance", {})}
            grammar = StructuredOutputsParams(json={**schema, "x-guidance": spacing})
        return SamplingParams(
            **request.policy.engine_parameters,
            n=1,
            max_tokens=max_tokens,
            seed=seed,
            stop_token_ids=None if request.stop_id is None else [request.stop_id],
            structured_outputs=grammar,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


def _arguments(config: RunConfig, slots: int) -> dict[str, Any]:
    """The keyword arguments of ``AsyncEngineArgs``; what the config names wins."""
    ours: dict[str, Any] = {
        "model": resolve_model(config.model.path),
        "revision": config.model.revision,
        "tensor_parallel_size": config.engine.tensor_parallel,
        "pipeline_parallel_size": config.engine.pipeline_parallel,
        "enable_prefix_caching": True,
        # A twentieth of a small model's speed on two cores; nothing beside a GPU's steps.
        "disable_log_stats": config.engine.device == "cpu",
        "max_num_seqs": slots,
        "stream_interval": TOKENS_A_REPORT,
    }
    if config.engine.ranks > 1:
        # Its own processes on this node: no placement group is needed. See `pipeline.execution.placement`.
        ours[BACKEND] = "mp"
    if config.model.lora is not None:
        ours["enable_lora"] = True
    if config.answer.schema_text is not None:
        # llguidance knows more of JSON Schema than xgrammar; white space where the model likes is
        # room to go in circles.
        ours["structured_outputs_config"] = {"backend": "guidance", "disable_any_whitespace": True}
    if config.engine.device == "cpu":
        # A seeded request whose prompt is cut in chunks ends the engine on CPU: the model runner
        # winds its random generator back, and PyTorch's CPU generator "does not use offset".
        ours["enable_chunked_prefill"] = False
    return {**ours, **config.engine.vllm}


def _prepare_cpu(tensor_parallel: int) -> None:
    """Environment that vLLM's CPU backend reads; what the user has set stays."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    if tensor_parallel > 1:
        # On one NUMA node vLLM can't divide the cores by itself: one list of cores a rank.
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // tensor_parallel)
        ranks = [cores[i * share : (i + 1) * share] or cores[-1:] for i in range(tensor_parallel)]
        bind = "|".join(",".join(map(str, rank)) for rank in ranks)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bind)
