"""What closing thinking early saves and costs, counted on a run's own rows; no I/O.

The control group thinks to its end, so both its full length and its length with closing are known.
The counts are additive: each part has its own in its footer, and an output's are their sums.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.reasoning.early_answer import ENOUGH_COMPARED, ControlGroup
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State
from pipeline.schema import EARLY_COLUMNS

CONFIDENCE = 0.95
COLUMNS = (
    "sample", "state", "closed_by", "loop_retries", "wasted_tokens", "think_tokens",
    "answer_tokens", "correct", "duplicate_of", *EARLY_COLUMNS,
)  # fmt: skip

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    mid: float
    low: float
    high: float


def early_counts(table: pa.Table, names: Mapping[str, str]) -> Counter[str]:
    """The counts of a table of whole rows, without copies of duplicates.

    ``names``: the run's column name by our name. ``closed``: traces closed early;
    ``overrun_tokens``: what those among them without another try generated beyond that point, until
    the probes were through; ``overrun_traces``: their number. ``spent_tokens``: all that was
    generated, probes included. All others are of the control group. ``settled``: traces with an
    early answer; ``compared`` and ``agreeing``: those with a full answer too, and with the same;
    ``compared_rows``: rows with compared traces.
    ``judged``: traces with a verdict on both answers; of these ``early_right``, ``full_right``,
    ``right_to_wrong`` (the full answer is right, the early one wrong) and ``wrong_to_right``.
    ``full_tokens``: thinking and answers; ``saved_tokens``: the thinking behind the early answers;
    ``net_tokens``: the same less the probes. What ends in ``_squared`` or has ``_by_`` in its name
    is a sum over rows, for intervals: samples of a row are not independent.
    """
    wanted = [name for name in (*COLUMNS, "asked_tokens") if name in names]
    values = _Values(table.select([names[name] for name in wanted]).rename_columns(wanted))
    think, answer, wasted, probes = (
        values.numbers(name)
        for name in ("think_tokens", "answer_tokens", "wasted_tokens", "probe_tokens")
    )
    asked = values.numbers("asked_tokens") if "asked_tokens" in names else np.zeros_like(think)
    closed = values.are("closed_by", ClosedBy.EARLY_ANSWER) & values.generated
    once = closed & (values.numbers("loop_retries") == 0)
    generated = values.generated
    counts = {
        "closed": closed.sum(),
        "overrun_traces": once.sum(),
        "overrun_tokens": wasted[once].sum(),
        "probes": values.numbers("probes")[generated].sum(),
        "probe_tokens": probes[generated].sum(),
        "spent_tokens": (think + answer + wasted + probes + asked)[generated].sum(),
    }
    control = values.flags("control") & generated & ~values.are("state", State.FAILED)
    settled = control & values.valid("early_tokens")
    saved = np.where(settled, np.maximum(think - values.numbers("early_tokens"), 0), 0)
    rows = values.rows
    by_row = {
        "compared": _by_row(rows, control & values.valid("early_agrees")),
        "agreeing": _by_row(rows, control & values.flags("early_agrees")),
        "full": _by_row(rows, np.where(control, think + answer, 0)),
        "net": _by_row(rows, np.where(control, saved - probes, 0)),
    }
    counts |= {
        "control_rows": len(np.unique(rows[control])),
        "control_traces": control.sum(),
        "settled": settled.sum(),
        "saved_tokens": saved.sum(),
        "compared_rows": np.count_nonzero(by_row["compared"]),
        "compared": by_row["compared"].sum(),
        "agreeing": by_row["agreeing"].sum(),
        "full_tokens": by_row["full"].sum(),
        "net_tokens": by_row["net"].sum(),
        **{f"{name}_squared": (each * each).sum() for name, each in by_row.items()},
        "agreeing_by_compared": (by_row["agreeing"] * by_row["compared"]).sum(),
        "net_by_full": (by_row["net"] * by_row["full"]).sum(),
        **_verdicts(values, control),
    }
    return Counter({name: int(count) for name, count in counts.items()})


def _verdicts(values: "_Values", control: Flags) -> dict[str, Any]:
    judged = control & values.valid("correct") & values.valid("early_correct")
    early, full = values.flags("early_correct"), values.flags("correct")
    return {
        "judged": judged.sum(),
        "early_right": (judged & early).sum(),
        "full_right": (judged & full).sum(),
        "right_to_wrong": (judged & full & ~early).sum(),
        "wrong_to_right": (judged & early & ~full).sum(),
    }


class _Values:
    """The columns of a table of whole rows as arrays (shape: traces); null is 0 or False."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.rows: Numbers = np.cumsum(self.numbers("sample") == 0)
        self.generated: Flags = ~self.valid("duplicate_of")

    def numbers(self, name: str) -> Numbers:
        filled = pc.fill_null(self._table[name], 0)
        return np.asarray(filled.to_numpy(), np.int64)

    def flags(self, name: str) -> Flags:
        return np.asarray(pc.fill_null(self._table[name], False).to_numpy(), np.bool_)

    def valid(self, name: str) -> Flags:
        return np.asarray(pc.is_valid(self._table[name]).to_numpy(), np.bool_)

    def are(self, name: str, value: str) -> Flags:
        equal = pc.fill_null(pc.equal(self._table[name], str(value)), False)
        return np.asarray(equal.to_numpy(), np.bool_)


def _by_row(rows: Numbers, values: NDArray[Any]) -> Numbers:
    """The sums of ``values`` (shape: traces) of each row."""
    sums = np.zeros(int(rows.max(initial=0)) + 1, np.int64)
    np.add.at(sums, rows, values)
    return sums


@dataclass(frozen=True)
class EarlySummary:
    """The counts of an output (see `early_counts`), and the ``floor`` of the agreement."""

    counts: Counter[str] = field(default_factory=Counter)
    floor: ControlGroup = field(default_factory=ControlGroup)

    @classmethod
    def of_parts(
        cls, summaries: Iterable[Mapping[str, Any]], floor: ControlGroup | None = None
    ) -> "EarlySummary | None":
        """The sum over the ``summaries`` of parts; None if none of them has such counts."""
        parts = [summary["early"] for summary in summaries if "early" in summary]
        if not parts:
            return None
        counts = Counter[str]()
        for part in parts:
            counts.update(part)
        return cls(counts, floor or ControlGroup())

    @property
    def is_enough(self) -> bool:
        """Whether enough rows of the control group were compared to say more than counts."""
        return self.counts["compared_rows"] >= ENOUGH_COMPARED

    @property
    def probe_share(self) -> float:
        """The tokens of probes, as a share of all that was generated."""
        return self.counts["probe_tokens"] / max(1, self.counts["spent_tokens"])

    @property
    def saving(self) -> Interval:
        """What closing early saves, as a share of the tokens of thinking to the end.

        The probes, and what a trace generates while its last probe runs, are taken off. A ratio
        estimator over the rows of the control group.
        """
        from scipy.stats import t

        of = self.counts
        rows, full = of["control_rows"], max(1, of["full_tokens"])
        ratio = of["net_tokens"] / full
        squares = (
            of["net_squared"] - 2 * ratio * of["net_by_full"] + ratio * ratio * of["full_squared"]
        )
        error = math.sqrt(max(0.0, squares) * rows / max(1, rows - 1)) / full
        margin = float(t.ppf((1 + CONFIDENCE) / 2, max(1, rows - 1))) * error
        overrun = of["overrun_tokens"] / max(1, of["overrun_traces"]) * of["settled"] / full
        return Interval(ratio - overrun, ratio - overrun - margin, ratio - overrun + margin)

    @property
    def agreement(self) -> Interval:
        """The share of early answers that equal the full one: a Wilson interval.

        Where the samples of a row agree or disagree together, it is that of fewer traces.
        """
        from scipy.stats import binomtest

        of = self.counts
        compared, share = of["compared"], of["agreeing"] / max(1, of["compared"])
        if 0 < share < 1:
            squares = (
                of["agreeing_squared"]
                - 2 * share * of["agreeing_by_compared"]
                + share * share * of["compared_squared"]
            )
            effect = squares / (compared * share * (1 - share))
        else:
            effect = of["compared_squared"] / max(1, compared)
        independent = max(1, round(compared / max(1.0, effect)))
        test = binomtest(round(share * independent), independent)
        interval = test.proportion_ci(CONFIDENCE, method="wilson")
        return Interval(share, float(interval.low), float(interval.high))

    @property
    def warning(self) -> str | None:
        """What is to say if too few early answers equal the full ones; None if all is well."""
        return self.control_group.warning

    @property
    def control_group(self) -> ControlGroup:
        """What a run that goes on has to know of the control group."""
        of = self.counts
        rows, compared, agreeing = of["compared_rows"], of["compared"], of["agreeing"]
        return replace(self.floor, rows=rows, compared=compared, agreeing=agreeing)

    def lines(self) -> Iterator[str]:
        """The counts as lines of text for people."""
        of = self.counts
        yield (
            f"{'early':<10} {of['closed']:>9,} traces closed early; probes are "
            f"{self.probe_share:.1%} of all generated tokens"
        )
        if not self.is_enough:
            yield f"{'control':<10} {self.too_few_text}"
            return
        yield f"{'saving':<10} {self.saving_text}"
        yield (
            f"{'control':<10} {of['agreeing']:>9,} of {of['compared']:,} early answers equal the "
            f"full one, {percent(self.agreement, 1)}"
        )
        if of["judged"]:
            yield f"{'control':<10} {self.verdicts_text}"

    @property
    def too_few_text(self) -> str:
        """What is said while the control group is too small."""
        return (
            f"{self.counts['compared_rows']:>9,} rows with early answers to compare with the full "
            f"one: too few to say what closing early saves and changes ({ENOUGH_COMPARED} are "
            "enough)"
        )

    @property
    def saving_text(self) -> str:
        """What closing early saves, in words."""
        saving, traces = self.saving, self.counts["control_traces"]
        verb = "saves" if saving.mid >= 0 else "COSTS: it saves"
        return (
            f"closing early {verb} {percent(saving, 0)} of a trace's tokens, after the cost of "
            f"probes; measured on {traces:,} control traces, which think to their end"
        )

    @property
    def verdicts_text(self) -> str:
        """How many answers of the control group are right, in words."""
        of = self.counts
        return (
            f"{of['early_right']:>9,} early and {of['full_right']:,} full answers right, of "
            f"{of['judged']:,}: closing early makes {of['right_to_wrong']:,} right ones wrong and "
            f"{of['wrong_to_right']:,} wrong ones right"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; shares only where the control group is large enough."""
        values: dict[str, Any] = {**self.counts, "probe_share": self.probe_share}
        if self.is_enough:
            shares = {"saving": self.saving, "agreement": self.agreement}
            values |= {name: interval._asdict() for name, interval in shares.items()}
        return values


def percent(interval: Interval, digits: int) -> str:
    """An interval of shares, such as 95.2% (95% interval: 88.4 to 98.1%)."""
    mid, low, high = (f"{100 * value:.{digits}f}" for value in interval)
    return f"{mid}% ({CONFIDENCE:.0%} interval: {low} to {high}%)"
