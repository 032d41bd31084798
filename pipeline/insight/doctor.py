"""Checks before a run: what would go wrong, each with what to do about it.

    for finding in examine(config): print(finding)

No engine starts, and only the first rows are read. A scratch file is written to the output location
and removed.
"""

import platform
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_type
from pipeline.engines.memory import weight_bytes
from pipeline.errors import QwqBatchError
from pipeline.execution.nodes import installed_version
from pipeline.execution.prepare import prepare, refuse_output_in_input
from pipeline.execution.run_input import find_input
from pipeline.insight import preview
from pipeline.insight.findings import GIB, Finding
from pipeline.insight.gpu_checks import check_gpus
from pipeline.output.layout import BOOKKEEPING
from pipeline.output.lease import holder
from pipeline.output.ledger import Ledger
from pipeline.output.workers import present
from pipeline.prompts.tokenizer import load_model_config, load_tokenizer
from pipeline.storage import Storage

NAME = "qwq-batch"
# S3 and Azure refuse requests signed more than a quarter of an hour from their own time.
CLOCK_SECONDS = 30


def examine(config: RunConfig, has_input: bool = True) -> Iterator[Finding]:
    """All findings, in order. A check that raises becomes a finding too.

    ``has_input``: False leaves out what reads the input, for a run whose input is yet to be made.
    """
    messages = set[str]()
    checks = (_python, _packages, _model, _tokens, check_gpus, _services, _output)
    for check in (*checks, _input, _run) if has_input else checks:
        try:
            yield from check(config)
        except QwqBatchError as error:
            if error.message not in messages:  # several checks load the model
                yield Finding("error", error.message)
            messages.add(error.message)
        except Exception as error:  # the other checks still run
            yield Finding("error", f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")


def _python(config: RunConfig) -> Iterator[Finding]:  # noqa: ARG001 (as all checks)
    yield Finding("ok", f"Python {platform.python_version()} on {platform.platform(terse=True)}")


def _packages(config: RunConfig) -> Iterator[Finding]:
    """Check the installed packages against the requirements of project and engine."""
    device, engine = config.engine.device, engine_type(config.engine)
    names = engine.packages_for(device)
    engine_package = next(
        (name for name in names if installed_version(name)), next(iter(names), None)
    )
    tested = {each.name: each.specifier for each in _requirements(device)}
    source = f"{NAME}[{device}]"
    wanted = {each.name: (each, source) for each in _requirements()}
    if engine_package is not None:
        supported = Requirement(f"{engine_package}{engine.supported_versions}")
        wanted[engine_package] = supported, source if engine_package in tested else engine_package
    problems = [_package_problem(name, *of) for name, of in wanted.items()]
    yield from filter(None, problems)
    versions = {
        name: installed_version(name)
        for name, problem in zip(wanted, problems, strict=True)
        if problem is None and name in ("ray", "transformers", engine_package)
    }
    yield Finding("ok", ", ".join(f"{name} {version}" for name, version in versions.items()))
    untested = [
        f"{name}{tested[name]}"
        for name, version in versions.items()
        if name in tested and not tested[name].contains(version or "", prereleases=True)
    ]
    if untested:
        yield Finding(
            "warning",
            f"other versions than those that were tested: {', '.join(untested)}",
            f"pip install '{source}'",
        )


def _requirements(device: str | None = None) -> Iterator[Requirement]:
    """Those of this project on this machine; with ``device``, those of its extra."""
    try:
        wanted = requires(NAME) or ()
    except PackageNotFoundError:  # it runs from a checkout that is not installed
        wanted = ()
    for requirement in map(Requirement, wanted):
        is_extra = "extra" in str(requirement.marker)
        if is_extra == (device is not None) and (
            requirement.marker is None or requirement.marker.evaluate({"extra": device or ""})
        ):
            yield requirement


def _package_problem(name: str, wanted: Requirement, source: str) -> Finding | None:
    """What is wrong with the installed package ``name``; ``source``: what installs it."""
    installed = installed_version(name)
    if installed is None:
        return Finding("error", f"{name} is not installed", f"pip install '{source}'")
    if wanted.specifier.contains(installed, prereleases=True):
        return None
    return Finding(
        "error",
        f"{name} {installed} is installed; {wanted.specifier} is needed{_HINTS.get(name, '')}",
        f"pip install '{wanted.name}{wanted.specifier}'",
    )


# What happens with versions that are too old.
_HINTS = {"transformers": " (older ones end with KeyError: 'qwen2')"}


def _model(config: RunConfig) -> Iterator[Finding]:
    name, engine = config.model.path, engine_type(config.engine)
    model = load_model_config(name, config.model.revision)
    kind, allows_code = str(model.get("model_type")), engine.runs_model_code(config.engine)
    yield Finding(
        "ok", f"{name} is a {kind} of {weight_bytes(model) / GIB:,.1f} GiB in its own dtype"
    )
    if not allows_code and not _knows(kind):
        yield Finding(
            "error",
            f"transformers {installed_version('transformers')} does not know models of type "
            f"{kind}; loading ends with KeyError: '{kind}'",
            "pip install --upgrade transformers",
        )
    if "auto_map" in model and not allows_code:
        setting = engine.model_code_setting
        yield Finding(
            "warning",
            f"{name} brings code of its own, which does not run unless you allow it",
            f"engine.kind {config.engine.kind} can't run it; take another"
            if setting is None
            else f"read that code, pin model.revision, and set {setting}",
        )


def _knows(kind: str) -> bool:
    """Whether transformers has the model type ``kind``.

    Its own lookup imports PyTorch, which takes most of the doctor's time. So its tables are read as
    text, unless they no longer look as they do now.
    """
    spec = find_spec("transformers")
    for folder in (spec and spec.submodule_search_locations) or ():
        tables = "".join(path.read_text() for path in Path(folder, "models", "auto").glob("*.py"))
        if '"qwen2"' in tables:
            return f'"{kind}"' in tables
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
            f"check that model.preset {config.model.preset} is this model's; otherwise set "
            "model.format, which splits thinking from answer",
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


def _services(config: RunConfig) -> Iterator[Finding]:
    """What the engines use outside of the cluster."""
    kind = engine_type(config.engine)
    kind.check(config.engine)
    for is_usable, line in kind.services(config):
        yield Finding("ok" if is_usable else "warning", line)


def _output(config: RunConfig) -> Iterator[Finding]:
    """Whether the store can do what the pipeline needs, and whether a driver works there."""
    store = Storage(config.output.path, attempts=3)
    refuse_output_in_input(config, store)
    others = (info for info in store.files() if not info.name.startswith(f"{BOOKKEEPING}/"))
    if Ledger(store).manifest() is None and any(others):
        return  # not the output of a run; `_run` says so
    name, existed = f"{BOOKKEEPING}/doctor/{uuid.uuid4().hex}", store.is_folder()
    began = time.time()
    if not store.create(name, b"first"):
        yield Finding("error", f"{store.url}: a new file could not be created")
        return
    try:
        yield from _writes(store, name, began)
    finally:
        store.delete([name])
        store.prune(BOOKKEEPING if existed else "")
    if store.exists(name):
        yield Finding(
            "error",
            f"{store.url}: a file could not be deleted",
            "allow to delete files (s3:DeleteObject, storage.objects.delete)",
        )
    yield Finding("ok", f"{store.url}: list, create, read, replace and delete work")
    driver = holder(store)
    if driver is not None and driver.is_at_work:
        yield Finding(
            "error",
            f"another driver is at work there: {driver}",
            "wait for it or end it, or choose another output.path",
        )
    if workers := [str(each) for each in present(store).values() if each.is_at_work]:
        yield Finding(
            "warning",
            f"{len(workers)} workers share the output (the first: {workers[0]})",
            "help them with qwq-batch work, or end them before qwq-batch run",
        )


def _writes(store: Storage, name: str, began: float) -> Iterator[Finding]:
    """Create the file ``name`` again, which must fail, and replace it; ``began``: Unix time."""
    if store.create(name, b"second") or store.read(name) != b"first":
        yield Finding(
            "error",
            f"{store.url} creates a file although it exists: two drivers could work at once",
            "use a store with conditional writes, as S3, Google Cloud Storage, Azure, MinIO, Ceph "
            "and SeaweedFS have",
        )
    yield from _clock(store, name, began)
    store.put(name, b"third")
    if store.read(name) != b"third":
        yield Finding(
            "error",
            f"{store.url} still returns the old content of a replaced file",
            "use a store that is consistent after writes",
        )


def _clock(store: Storage, name: str, began: float) -> Iterator[Finding]:
    """Compare the store's time of a new file with this machine's clock."""
    try:
        written = store.fs.modified(store.path(name)).timestamp()
    except (NotImplementedError, AttributeError):
        return
    seconds_apart = max(began - written, written - time.time(), 0.0)
    if seconds_apart > CLOCK_SECONDS:
        yield Finding(
            "warning",
            f"this machine's clock and that of {store.url} are {seconds_apart:,.0f} s apart",
            "set the clock (NTP): object stores refuse requests signed with a wrong time",
        )


def _input(config: RunConfig) -> Iterator[Finding]:
    found = find_input(config)
    rows = sum(shard.rows for shard in found.shards)
    yield Finding(
        "ok",
        f"{config.input.path}: {len(found.shards):,} shards, {rows:,} rows, columns "
        f"{', '.join(found.schema.names)}",
    )
    for note in found.notes:
        yield Finding("warning", note)
    if not rows:
        yield Finding("warning", f"{config.input.path} has no rows")


def _run(config: RunConfig) -> Iterator[Finding]:
    """The config as a whole, as `run` checks it, and the first prompts."""
    engine = config.engine
    for warning in (*config.warnings, *engine_type(engine).warnings(engine)):
        yield Finding("warning", warning)
    prepared = prepare(config)
    plan = prepared.plan
    yield Finding("ok", f"{plan.rows_todo:,} of {plan.rows:,} rows are to do")
    sampled = preview.sample(prepared)
    if sampled.errors:
        yield Finding(
            "warning", str(sampled), "these rows become failed: correct or leave them out"
        )
    if (references := prepared.references) is not None:
        yield Finding("warning" if references.unreadable else "ok", references.summary)
    for prompt in preview.prompts(prepared, 1):
        if prompt["prompt"] is not None:
            yield Finding("ok", f"the first prompt has {prompt['prompt_tokens']:,} tokens")
