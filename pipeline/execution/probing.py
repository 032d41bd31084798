"""Short answers: probes of a trace while it thinks, and what is asked for once more after it.

All of it runs on the trace's engine, in the event loop of the engine's front end.

One probe of a trace runs at a time, beside the trace itself. The points that come meanwhile wait,
and are probed where they were found: so which probes there are does not depend on how fast they
are, but for those that run or wait when the trace ends.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.engines import Engine, Request
from pipeline.errors import EngineDeadError, RowError
from pipeline.reasoning.early_answer import Probe, may_probe, settled
from pipeline.reasoning.policy import TraceProgress
from pipeline.reasoning.probes import ProbeForm, ShortAnswerForm

Count = Callable[[int], None]
# Of the tokens before a point, those in which the end of the thinking is looked for again.
OVERLAP = 64


async def short_answer(
    engine: Engine, form: ShortAnswerForm, request: Request, count: Count
) -> tuple[int, str | None]:
    """How many tokens a short answer takes, and what it says; None if it does not come to its end.

    ``request``: what stands before it, opening included, and the rest as for the trace itself.
    ``count``: gets the number of tokens as they come.
    """
    answer, reason, begun = list[int](), "stop", -1
    carried = request.carried_token_ids
    policy = form.sampling(request.policy, len(carried))
    request = replace(request, policy=policy, stop_ids=form.stop_ids, schema=form.schema)

    def on_tokens(new: Sequence[int]) -> bool:
        answer.extend(new)
        count(len(new))
        return False

    while reason == "stop" and len(answer) > begun and not form.is_whole(answer):
        begun = len(answer)
        request = replace(request, carried_token_ids=(*carried, *answer))
        reason = await engine.generate(request, on_tokens)
    return len(answer), form.read(answer, reason)


@dataclass
class Probing:
    """What all probes on an engine share.

    ``is_closed``: whether token ids hold the end of the thinking. ``count``: gets the number of
    tokens that a probe has generated. ``running``: how many probes there are now.
    """

    engine: Engine
    form: ProbeForm
    is_closed: Callable[[Sequence[int]], bool]
    count: Count
    running: int = 0

    def settled(self, progress: TraceProgress) -> Probe | None:
        """The probe with which the answer of a trace had settled."""
        return settled(progress.probes, self.form.early.agree)

    def has_settled(self, progress: TraceProgress) -> bool:
        """Whether a trace that still thinks can be closed where its answer had settled."""
        return self.settled(progress) is not None and not self.is_closed(progress.token_ids)

    async def same(self, one: str, other: str) -> bool | None:
        """As `ProbeForm.same`; formulas are compared in a thread."""
        return one == other or await asyncio.to_thread(self.form.same, one, other)


class Prober:
    """The probes of one trace during one request.

    ``request``: that of the trace. ``on_settled``: called once, when the probes agree while the
    trace still thinks.
    """

    def __init__(
        self,
        probing: Probing,
        progress: TraceProgress,
        request: Request,
        on_settled: Callable[[], None],
    ) -> None:
        self._probing, self._progress, self._request = probing, progress, request
        self._on_settled = on_settled
        self._points, self._due = probing.form.points(), deque[int]()
        self._checked = self._unkept = 0  # the latter: tokens of a probe that has not ended
        self._task: asyncio.Task[None] | None = None
        self._is_over = probing.settled(progress) is not None
        self.look()

    def look(self) -> None:
        """Probe at the points that new tokens have added."""
        if self._is_over:
            return
        probed = self._progress.probes[-1].at if self._progress.probes else 0
        self._due += (at for at in self._points.new(self._progress.token_ids) if at > probed)
        if self._due and self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def end(self) -> None:
        """End the probe that runs, if one does: the thinking is over. Its tokens were in vain."""
        self._is_over = True
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        """Probe at all points that are due, in order."""
        try:
            while self._due and not self._is_over:
                await self._look_at(self._due.popleft())
        except (RowError, EngineDeadError):  # an engine that is dead ends the trace's request too
            self._is_over = True
        finally:
            self._task = None
            self._progress.wasted_tokens += self._unkept
            self._unkept = 0

    async def _look_at(self, at: int) -> None:
        progress, probing = self._progress, self._probing
        if self._thinking_ends(at) or not self._has_room(at):
            self._is_over = True
            return
        if not may_probe(probing.form.early, progress.probes, at, probing.form.tokens):
            return
        tokens, answer = await self._probe(at)
        last = progress.probes[-1] if progress.probes else Probe(0, 0, None, 0)
        alike = 0 if answer is None else 1
        if answer is not None and last.answer is not None:
            alike += last.alike if await probing.same(last.answer, answer) else 0
        progress.probes.append(Probe(at, tokens, answer, alike))
        self._unkept = 0
        if probing.settled(progress) is not None:
            self._is_over = True
            if not self._thinking_ends(len(progress.token_ids)):
                self._on_settled()

    def _thinking_ends(self, at: int) -> bool:
        """Whether the thinking is over before ``at``, as far as it was not looked at before."""
        begin, self._checked = max(0, self._checked - OVERLAP), at
        return self._probing.is_closed(self._progress.token_ids[begin:at])

    def _has_room(self, at: int) -> bool:
        """Whether the context has room for a probe after ``at`` tokens."""
        form = self._probing.form
        length = len(self._request.prompt_token_ids) + at + len(form.opening) + form.tokens
        return length <= self._probing.engine.context_tokens

    async def _probe(self, at: int) -> tuple[int, str | None]:
        """How many tokens a probe after ``at`` tokens of thinking generates, and its answer."""
        probing, request = self._probing, self._request
        carried = (*self._progress.token_ids[:at], *probing.form.opening)
        probe = replace(request, id=f"{request.id}:probe", carried_token_ids=carried)
        probing.running += 1
        try:
            return await short_answer(probing.engine, probing.form, probe, self._count)
        finally:
            probing.running -= 1

    def _count(self, tokens: int) -> None:
        self._unkept += tokens
        self._probing.count(tokens)
