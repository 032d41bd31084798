"""Generation on one engine: the rows of a block, their samples, the steps of a sample.

All of it runs in the event loop of the engine's front end. Errors of a row end up in its traces;
the death of the engine passes through.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import replace
from functools import partial

from pipeline.config.run_config import RunConfig
from pipeline.engines import Engine, EngineLoad, OnTokens, Request, engine_slots
from pipeline.errors import EngineDeadError, RowError
from pipeline.execution.agreement import AgreeingRow, SpareSlots
from pipeline.execution.probing import Prober, Probing, short_answer
from pipeline.execution.row_policies import RowPolicies
from pipeline.execution.samples import Sample
from pipeline.monitor.crash_isolation import CrashIsolationGate, Suspicion
from pipeline.monitor.engine_processes import RowKey
from pipeline.monitor.figures import length_bin
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import Pass
from pipeline.reasoning.early_answer import Probe, is_below_floor
from pipeline.reasoning.policy import SETTLED, ClosedBy, Step, TracePolicy, TraceProgress
from pipeline.reasoning.repetition import RepetitionDetector, loop_onset
from pipeline.reasoning.sampling import derive_again
from pipeline.reasoning.think_format import State
from pipeline.reasoning.trace import Trace, TraceMaker

logger = logging.getLogger(__name__)
# How often an answer after thinking that was closed early is drawn at most, until it says what the
# probes agreed on.
ANSWERS = 3


class InFlight:
    """The rows whose requests the engine runs now.

    ``at_death``: those that it ran when it died; None while it lives.
    """

    def __init__(self) -> None:
        self._rows: dict[int, RowKey] = {}  # by request
        self.at_death: list[RowKey] | None = None

    @contextmanager
    def running(self, request: Request, row: RowKey) -> Iterator[None]:
        """Count ``row`` while the body runs; the first `EngineDeadError` sets `at_death`."""
        if self.at_death is not None:
            raise EngineDeadError("the engine died before this row's turn")
        self._rows[id(request)] = row
        try:
            yield
        except EngineDeadError:
            if self.at_death is None:
                self.at_death = list(dict.fromkeys(self._rows.values()))
            raise
        finally:
            del self._rows[id(request)]


class Generator:
    """Runs samples on an engine, as the reasoning policy says, and counts for the reporter."""

    def __init__(
        self,
        config: RunConfig,
        run_pass: Pass,
        engine: Engine,
        maker: TraceMaker,
        reporter: EngineReporter,
    ) -> None:
        self._engine, self._maker, self._reporter = engine, maker, reporter
        self._attempt = run_pass.attempt
        self._agree = None if run_pass.is_retry else config.sampling.agree
        self._spare = SpareSlots(engine_slots(config), lambda: self.load)
        policy = TracePolicy(
            config.sampling,
            config.thinking,
            engine.context_tokens,
            maker.closing,
            maker.is_closed,
            maker.answer_pass,
            partial(loop_onset, decode=maker.text),
        )
        self._policies = RowPolicies(policy, maker, config.input.sampling_column is not None)
        self.in_flight = InFlight()
        self._gate, self._suspects = CrashIsolationGate(), list[RowKey]()
        self._tasks: set[asyncio.Task[list[Trace]]] = set()
        self._cancelled = False
        self._probing: Probing | None = None
        # With probes, traces leave them the slots that are theirs.
        self._slots: AbstractAsyncContextManager[None] = nullcontext()
        if config.thinking.early_answer is not None:
            form = maker.probe_form(config.thinking.early_answer)
            self._slots = asyncio.Semaphore(engine_slots(config))
            self._probing = Probing(engine, form, maker.is_closed, self._count_probe)
        self._asking = maker.asking_form if config.answer.ask_again else None
        self._closes = True  # thinking early, of rows outside the control group

    @property
    def load(self) -> EngineLoad:
        """The engine's load by traces: probes have slots of their own, and wait for each other."""
        load, probes = self._engine.load, 0 if self._probing is None else self._probing.running
        queued = min(probes, load.waiting)
        running = max(0, load.running - (probes - queued))
        return replace(load, running=running, waiting=load.waiting - queued)

    def look_at_control_group(self, rows: int, compared: int, agreeing: int) -> None:
        """Close no more thinking early if too few of the ``compared`` answers are ``agreeing``.

        ``rows``: how many rows they are of.
        """
        early = None if self._probing is None else self._probing.form.early
        if early is None or early.below != "stop" or not self._closes:
            return
        if is_below_floor(early.min_agreement, rows, compared, agreeing):
            logger.warning(
                "only %d of %d early answers of the control group equal the full one; thinking is "
                "no longer closed early", agreeing, compared,
            )  # fmt: skip
            self.close_no_more()

    def close_no_more(self) -> None:
        """Close no more thinking early: the control group does not agree."""
        self._closes = False

    async def run(self, rows: Sequence[Sequence[Sample]]) -> list[list[Trace]]:
        """Run all rows of a block at once; returns the traces of each, in the samples' order.

        Raises `EngineDeadError`, and `asyncio.CancelledError` after `cancel`.
        """
        if self._cancelled:
            raise asyncio.CancelledError
        tasks = [asyncio.ensure_future(self._row(samples)) for samples in rows]
        self._tasks.update(tasks)
        try:
            traces = await asyncio.gather(*tasks)
        finally:
            self._tasks.difference_update(tasks)
        self._reporter.done.rows += len(rows)
        return traces

    async def cancel(self) -> None:
        """End all rows that run and refuse those that come; wait until they have ended."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _row(self, samples: Sequence[Sample]) -> list[Trace]:
        """The traces of one row, counted."""
        traces = await self._drawn(samples)
        self._reporter.done.compared_rows += any(map(_is_compared, traces))
        return traces

    async def _drawn(self, samples: Sequence[Sample]) -> list[Trace]:
        """The traces of one row: of all samples, or of as many as it takes to agree."""
        if self._agree is not None and self._agree < len(samples):
            row = AgreeingRow(samples, self._agree, self._sample, self._count, self._spare)
            return await row.run()
        drawn = [self._counted(sample) for sample in samples]
        # A single sample needs no task of its own.
        return [await drawn[0]] if len(drawn) == 1 else await asyncio.gather(*drawn)

    async def _counted(self, sample: Sample) -> Trace:
        trace = await self._sample(sample)
        self._count(trace)
        return trace

    async def _sample(self, sample: Sample) -> Trace:
        """The trace of one sample: step by step as the policy says; failed after a `RowError`."""
        try:
            needs_engine = sample.needs_engine()
            async with self._gate.turn(sample.suspicion), self._announced(sample), self._slots:
                await self._generate(sample, sample.seed)
                self._reporter.done.generated += needs_engine
                trace = await self._trace(sample)  # which may kill the process, too
                trace = await self._drawn_again(sample, trace)
        except RowError as error:
            number = sample.key[2]
            trace = Trace(State.FAILED, number, sample.seed, self._attempt, error=str(error))
        sampled_with = self._policies.sampled_with(sample.settings)
        return trace if sampled_with is None else replace(trace, sampled_with=sampled_with)

    async def _drawn_again(self, sample: Sample, trace: Trace) -> Trace:
        """``trace``, its answer drawn again while it is not what the probes agreed on.

        What is finished stays so whatever happens: poison is not drawn again.
        """
        for again in range(1, ANSWERS):
            if sample.suspicion >= Suspicion.POISON or not _contradicts_probes(trace):
                break
            sample.progress.answer_again(trace.asked_tokens)
            try:
                await self._generate(sample, derive_again(sample.seed, -again))
            except RowError:
                break
            trace = await self._trace(sample)
        return trace

    async def _generate(self, sample: Sample, seed: int) -> None:
        """Go on with the sample, step by step, until its trace has ended."""
        progress = sample.progress
        policy = self._policies.policy(sample.settings)
        room = policy.max_output_tokens(len(sample.prompt))
        while progress.finish_reason is None:
            step = policy.next_step(progress, seed, room)
            request = self._request(sample, step)
            with self.in_flight.running(request, sample.row_key):
                reason = await self._run_step(sample, step, request)
            policy.end_step(progress, reason, room)

    @asynccontextmanager
    async def _announced(self, sample: Sample) -> AsyncIterator[None]:
        """Tell which suspects run, before they do: the process may end without a word."""
        if sample.suspicion == Suspicion.NONE:
            yield
            return
        self._suspects.append(sample.row_key)
        try:
            await asyncio.wrap_future(self._reporter.suspects_run(self._suspects).future())
            yield
        finally:
            self._suspects.remove(sample.row_key)
            self._reporter.suspects_run(self._suspects)

    def _request(self, sample: Sample, step: Step) -> Request:
        """What ``step`` asks the engine for."""
        ref, row, number = sample.key
        name = f"{ref.shard}:{row}:{number}"
        return Request(
            name,
            sample.prompt,
            tuple(sample.progress.token_ids),
            step.policy,
            step.seed,
            () if step.stop_id is None else (step.stop_id,),
            step.schema,
            name,
        )

    async def _run_step(self, sample: Sample, step: Step, request: Request) -> str:
        """Run one step to its end; returns why it ended."""
        progress = sample.progress
        detector = RepetitionDetector(self._maker.text) if step.watch_loops else None
        if detector is not None:
            detector.add(request.carried_token_ids)
        on_tokens = partial(self._on_tokens, progress, detector)
        if self._probing is None or not step.probes or not (sample.control or self._closes):
            return await self._engine.generate(request, on_tokens)
        return await self._run_probed(sample, request, on_tokens, self._probing)

    async def _run_probed(
        self, sample: Sample, request: Request, on_tokens: OnTokens, probing: Probing
    ) -> str:
        """Run a request of thinking to its end, or until its probes have settled the answer."""
        progress, settled = sample.progress, asyncio.Event()
        if not sample.control and probing.has_settled(progress):  # before a restart
            return SETTLED

        def on_probed(new: Sequence[int]) -> bool:
            loops = on_tokens(new)
            prober.look()
            return loops

        def on_settled() -> None:
            if not sample.control and self._closes:
                settled.set()

        generating = asyncio.ensure_future(self._engine.generate(request, on_probed))
        waiting = asyncio.ensure_future(settled.wait())
        prober = Prober(probing, progress, request, on_settled)
        try:
            await asyncio.wait((generating, waiting), return_when=asyncio.FIRST_COMPLETED)
            return generating.result() if generating.done() else SETTLED
        finally:
            waiting.cancel()
            generating.cancel()
            await asyncio.gather(prober.end(), generating, waiting, return_exceptions=True)

    def _on_tokens(
        self, progress: TraceProgress, detector: RepetitionDetector | None, new: Sequence[int]
    ) -> bool:
        """Add new tokens to ``progress``; returns whether the trace loops."""
        self._reporter.done.spent_tokens += len(new)
        progress.report(new)
        return detector is not None and detector.add(new)

    def _count_probe(self, tokens: int) -> None:
        self._reporter.done.spent_tokens += tokens
        self._reporter.done.probe_tokens += tokens

    def _count_asked(self, tokens: int) -> None:
        self._reporter.done.spent_tokens += tokens

    async def _trace(self, sample: Sample) -> Trace:
        trace = self._policies.maker(sample.settings).trace(
            sample.progress,
            sample.prompt,
            sample=sample.key[2],
            seed=sample.seed,
            attempt=self._attempt,
        )
        if trace.state == State.UNPARSED:
            trace = await self._asked(sample, trace)
        if self._probing is None:
            return trace
        trace = replace(trace, control=sample.control)
        early = self._probing.settled(sample.progress)
        return trace if early is None else await self._compared(trace, early)

    async def _asked(self, sample: Sample, trace: Trace) -> Trace:
        """``trace``, which can't be parsed, asked once more for its answer, if it may be.

        What is finished stays so whatever happens: poison is not asked, nor where there is no room.
        """
        if self._asking is None or sample.suspicion >= Suspicion.POISON:
            return trace
        after = [*self._maker.asked_after(sample.progress, trace), *self._asking.opening]
        tokens = len(sample.prompt) + len(after) + self._asking.tokens
        if tokens > self._engine.context_tokens:
            return trace
        sampling = self._policies.policy(sample.settings).sampling
        request = self._request(sample, Step(sampling, sample.seed, False))
        request = replace(request, id=f"{request.id}:asked", carried_token_ids=tuple(after))
        try:
            with self.in_flight.running(request, sample.row_key):
                spent, parsed = await short_answer(
                    self._engine, self._asking, request, self._count_asked
                )
        except RowError:
            return trace
        return self._maker.asked(trace, parsed, spent)

    async def _compared(self, trace: Trace, early: Probe) -> Trace:
        """``trace``, whose answer had settled with ``early``, with whether its own is the same.

        Where that takes too long to tell, they are not compared.
        """
        trace = replace(trace, early_answer=early.answer, early_tokens=early.at)
        if trace.parsed is None or self._probing is None:
            return trace
        agrees = await self._probing.same(early.answer or "", trace.parsed)
        return replace(trace, early_agrees=agrees)

    def _count(self, trace: Trace) -> None:
        done = self._reporter.done
        done.prompt_tokens += trace.prompt_tokens or 0
        done.output_tokens += trace.think_tokens + trace.answer_tokens - trace.carried_tokens
        done.states[trace.state] += 1
        if trace.state != State.FAILED:
            done.think_lengths[length_bin(trace.think_tokens)] += 1
        if _is_compared(trace):
            done.compared += 1
            done.agreeing += bool(trace.early_agrees)


def _contradicts_probes(trace: Trace) -> bool:
    """Whether thinking was closed because probes agreed, and the answer is not what they said."""
    if trace.closed_by != ClosedBy.EARLY_ANSWER:
        return False
    return trace.early_agrees is False or trace.state == State.UNPARSED


def _is_compared(trace: Trace) -> bool:
    """Whether a trace of the control group has both an early answer and a full one."""
    return trace.control and trace.early_agrees is not None
