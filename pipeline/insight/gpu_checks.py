"""The doctor's checks of GPUs, on this machine or on every GPU node of the cluster."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots, engine_type
from pipeline.engines.memory import MemoryNeed
from pipeline.engines.roofline import Layout, Speed, gpu_of, layouts, slots_for
from pipeline.execution.cluster import address_of, cluster
from pipeline.execution.context_tiers import make_context_tiers
from pipeline.execution.nodes import Node, NodeGpu, installed_version, look_at_gpu_nodes, look_here
from pipeline.execution.slots import expected_context
from pipeline.insight.findings import GIB, Finding
from pipeline.monitor.history import all_figures
from pipeline.prompts.tokenizer import load_model_config
from pipeline.storage import Storage

PACKAGES = ("qwq-batch", "ray", "torch", "transformers")
# The CUDA that PyTorch's and vLLM's wheels bring, by package; and the drivers that it needs.
RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")
DRIVERS = {12: 525, 13: 580}
SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"
LEAST_SHARED_MEMORY = 1 * GIB
# What others may use of a GPU's memory: a display, a monitor.
IN_USE = 1 * GIB
# Slots are far off if they would fill less, or more, of the KV cache than this.
TOO_EMPTY, TOO_FULL = 0.5, 1.3


def check_gpus(config: RunConfig) -> Iterator[Finding]:
    """Whether engines start on the GPUs that there are, and how fast they would be."""
    engine, nodes = config.engine, _nodes(config)
    for node in nodes:
        yield from _check_node(node, config)
    need = _memory_need(config)
    if need is None:
        yield Finding("ok", f"engines run on {engine.device.upper()}s ({engine.kind})")
        return
    gpus = [gpu for node in nodes for gpu in node.gpus]
    is_local = address_of(config) == "local"
    if not gpus:
        where = "this machine" if is_local else "any node of the cluster (some may come later)"
        yield Finding(
            "error" if is_local else "warning",
            f"no GPU on {where}; an engine needs {(need.weights + need.overhead) / GIB:,.0f} GiB "
            f"and {need.trace / GIB:,.1f} GiB for each trace of {need.context:,} tokens",
            "run it on a machine with GPUs, or set ray.address; without any, engine.device=cpu",
        )
        return
    wanted = engine.min_replicas * engine.ranks
    if engine.is_elastic:
        now = min(len(gpus) // engine.ranks, engine.max_replicas)
        yield Finding("ok", f"{now} engines of {engine.replicas_text} have GPUs at present")
    if len(gpus) < wanted:
        yield Finding(
            "error" if is_local else "warning",
            f"{engine.min_replicas} engines of {engine.ranks} GPUs need {wanted}, and there are "
            f"{len(gpus)}",
            "lower engine.replicas or engine.tensor_parallel"
            + (", or set ray.address" if is_local else ", unless nodes are still to come"),
        )
    smallest = min(gpus, key=lambda gpu: gpu.memory)
    room = _room_for_traces(config, need, smallest.memory)
    yield room
    if room.level == "ok":
        yield from _fullness(config, need, smallest.name, smallest.memory)
    largest = max((node.gpus for node in nodes), key=len)
    yield from _layouts(config, need, largest)


def _nodes(config: RunConfig) -> Sequence[Node]:
    """The nodes with GPUs of the cluster; or the present machine."""
    packages = (
        *PACKAGES,
        *RUNTIMES,
        *engine_type(config.engine).packages_for(config.engine.device),
    )
    if config.engine.device != "gpu" or address_of(config) == "local":
        return [look_here(packages, [SAMPLER])]
    with cluster(config):
        return look_at_gpu_nodes(packages, [SAMPLER])


def _check_node(node: Node, config: RunConfig) -> Iterator[Finding]:
    """What would go wrong on one node."""
    if node.problem is not None:
        yield Finding("error", f"{node.host} can't be looked at: {node.problem}")
        return
    if node.shared_memory is not None and node.shared_memory < LEAST_SHARED_MEMORY:
        yield Finding(
            "warning",
            f"{node.host}: /dev/shm has {node.shared_memory / GIB:.2f} GiB; Ray's object store and "
            "tensor parallelism use it",
            "in Docker, start the container with --shm-size=8g or more; in Kubernetes, mount "
            "an emptyDir with medium: Memory there",
        )
    if config.engine.device == "gpu":
        yield from _check_gpu_node(node)


def _check_gpu_node(node: Node) -> Iterator[Finding]:
    for name, there in node.versions.items():
        here = installed_version(name)
        if name not in RUNTIMES and there != here:
            yield Finding(
                "error" if name in ("qwq-batch", "ray") else "warning",
                f"{node.host} has {name} {there or '(none)'}, and the driver {here or '(none)'}",
                "use one image for all nodes",
            )
    if node.environment.get(SAMPLER) == "1" and node.nvcc is None:
        yield Finding(
            "error",
            f"{node.host}: {SAMPLER} is 1, and there is no nvcc to compile that sampler",
            f"unset {SAMPLER} (seeded requests never use it), or install the CUDA toolkit",
        )
    if node.counted > len(node.gpus):
        yield Finding(
            "warning",
            f"{node.host}: Ray counts {node.counted} GPUs, and nvidia-smi shows {len(node.gpus)}",
            "start Ray there without --num-gpus; check nvidia-smi on that node",
        )
    for gpu in node.gpus:
        if gpu.used > IN_USE:
            yield Finding(
                "warning",
                f"{node.host}: {gpu.used / GIB:,.1f} GiB of a {gpu.name} are in use",
                "end what uses it (nvidia-smi shows which process)",
            )
            break
    yield from _check_driver(node)
    if node.gpus:
        first = node.gpus[0]
        yield Finding(
            "ok",
            f"{node.host}: {len(node.gpus)} x {first.name}, {first.memory / GIB:,.0f} GiB, driver "
            f"{first.driver}",
        )


def _check_driver(node: Node) -> Iterator[Finding]:
    runtime = next((node.versions[name] for name in RUNTIMES if node.versions.get(name)), None)
    if runtime is None or not node.gpus:
        return
    driver, cuda = node.gpus[0].driver, int(runtime.split(".")[0])
    least = DRIVERS.get(cuda)
    if least is not None and int(driver.split(".")[0]) < least:
        yield Finding(
            "error",
            f"{node.host}: driver {driver} is too old for CUDA {runtime}, which the wheels bring",
            f"install driver R{least} or newer, or a vLLM for CUDA {cuda - 1}",
        )


def _memory_need(config: RunConfig) -> MemoryNeed | None:
    """What an engine takes of its GPUs, with the longest context that it will have."""
    engine = config.engine
    if engine.device != "gpu":
        return None
    model = _model(config)
    if engine.context == "auto":
        tiers = make_context_tiers(config, model)
        engine = max(tiers, key=lambda tier: tier.context).applied(config).engine
    return engine_type(engine).memory(engine, model)


def _model(config: RunConfig) -> Mapping[str, Any]:
    return load_model_config(config.model.path, config.model.revision)


def _room_for_traces(config: RunConfig, need: MemoryNeed, gpu: float) -> Finding:
    """Whether a trace of full length fits beside the weights; ``gpu``: bytes of each GPU."""
    ranks = config.engine.ranks
    kv_cache = need.kv_cache(gpu, ranks)
    if kv_cache >= need.trace:
        return Finding(
            "ok",
            f"an engine's KV cache holds {kv_cache / need.token:,.0f} tokens: "
            f"{int(kv_cache / need.trace):,} traces of full length ({need.context:,})",
        )
    enough = (n for n in (2, 4, 8, 16) if n > ranks and need.kv_cache(gpu, n) >= need.trace)
    more = next((f"engine.tensor_parallel={n} or " for n in enough), "")
    return Finding(
        "error" if need.is_exact else "warning",
        f"weights of {need.weights / GIB:,.0f} GiB leave {max(0.0, kv_cache) / GIB:,.1f} GiB of "
        f"{ranks} x {gpu / GIB:,.0f} GiB for the KV cache; one trace of {need.context:,} tokens "
        f"needs {need.trace / GIB:,.1f}",
        f"set {more}a lower {need.context_setting}",
    )


def _fullness(config: RunConfig, need: MemoryNeed, gpu: str, memory: float) -> Iterator[Finding]:
    """Whether slots fit the KV cache, for the lengths that traces are likely to have."""
    kv_tokens = need.kv_cache(memory, config.engine.ranks) / need.token
    context = _context(config)
    chosen = slots_for(kv_tokens, context)
    lengths = f"traces that hold {context:,.0f} tokens on average"
    if not engine_type(config.engine).has_slots(config.engine):
        yield Finding("ok", f"engines get {chosen:,} slots, for {lengths}")
        return
    slots = engine_slots(config)
    share = slots * context / kv_tokens
    what = f"{slots:,} slots with {lengths} fill {share:.0%} of an engine's KV cache"
    if share > TOO_FULL:
        yield Finding(
            "warning", f"{what}, so some are computed again and again", f"set {chosen:,} slots"
        )
    elif share < TOO_EMPTY and chosen > slots:
        known, gain = gpu_of(gpu), ""
        if known is not None:
            speed = Speed(known, config.engine.ranks, need, _model(config))
            now, then = (speed.tokens_per_second(n, context) for n in (slots, chosen))
            gain = f": from {now:,.0f} to {then:,.0f} tokens/s by a model, not measured"
        yield Finding("warning", what, f"set {chosen:,} slots, or none{gain}")
    else:
        yield Finding("ok", what)


def _layouts(config: RunConfig, need: MemoryNeed, gpus: Sequence[NodeGpu]) -> Iterator[Finding]:
    """The ways to divide a node's GPUs, as a table; the config's own is marked."""
    name = gpus[0].name
    gpu = gpu_of(name)
    if gpu is None:
        yield Finding("ok", f"no speed is predicted for {name}: its bandwidth is not known here")
        return
    memory = [each.memory for each in gpus]
    found = list(layouts(memory, gpu, need, _model(config), _context(config)))
    if not found:
        return
    lines = "".join(f"\n{'':<10}{_layout_line(config, layout)}" for layout in found)
    yield Finding(
        "ok",
        f"{len(gpus)} x {gpu.name} could be used so (by a roofline model, not measured):{lines}",
    )


def _layout_line(config: RunConfig, layout: Layout) -> str:
    price, ours = config.prices.gpu_hour, layout.tensor_parallel == config.engine.ranks
    money = "" if price is None else f", {layout.price(price):,.2f} for a million tokens"
    return (
        f"{layout.replicas} x tensor_parallel {layout.tensor_parallel}, {layout.slots:>3} slots: "
        f"{layout.tokens_per_second:>7,.0f} tokens/s{money}{'  <- this config' if ours else ''}"
    )


def _context(config: RunConfig) -> float:
    return expected_context(config, all_figures(Storage(config.output.path)))
