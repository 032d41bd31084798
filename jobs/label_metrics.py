"""How well labels agree with people's where a text has several, or labels have levels; no I/O.

Counts are of rows by (people's label, the model's, whether all samples agree), as in
`jobs.agreement`. By scikit-learn.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.agreement import MOST_SHOWN, Pairs, groups_of, scores_line
from jobs.label_section import LEVELS
from jobs.markdown import literal, table_lines
from jobs.sections import NONE

Sets = list[tuple[frozenset[str], frozenset[str], int]]


def by_label_lines(pairs: Pairs) -> Iterator[str]:
    """Rows with the same labels and F1 over all labels, then precision, recall and F1 of each."""
    groups = [[name, *_overall(_sets(group))] for name, group in groups_of(pairs).items() if group]
    yield from table_lines(["compared with people", "rows", "same labels", "F1"], groups)
    found = _sets(pairs)
    names = sorted({name for gold, said, _ in found for name in gold | said})
    if not names:
        return
    precision, recall, f1, support = _scores(found, names, None)
    said = [sum(rows for _, labels, rows in found if name in labels) for name in names]
    rows = [
        [literal(name), f"{int(of):,}", f"{by:,}", *map(_share, scores)]
        for name, of, by, *scores in zip(names, support, said, precision, recall, f1, strict=True)
    ]
    rows.sort(key=lambda row: -int(row[1].replace(",", "")))
    if len(rows) > MOST_SHOWN:
        rows = [*rows[:MOST_SHOWN], [f"{len(rows) - MOST_SHOWN:,} others", *[""] * 5]]
    yield ""
    yield from table_lines(["label", "people", "model", "precision", "recall", "F1"], rows)


def by_level_lines(pairs: Pairs, several: bool) -> Iterator[str]:
    """The agreement at each level of paths: of rows to which people gave a label so deep."""
    deepest = max(len(path.split(LEVELS)) for gold, *_ in pairs for path in _names(gold, several))
    levels = range(1, deepest + 1)
    if several:
        rows = [[f"{level}", *_overall(_at(_sets(pairs), level))] for level in levels]
        yield from table_lines(["level", "rows", "same labels", "F1"], rows)
        return
    rows = [[f"{level}", *scores_line(_pairs_at(pairs, level))] for level in levels]
    yield from table_lines(["level", "rows", "accuracy", "Cohen's kappa"], rows)


def _pairs_at(pairs: Pairs, level: int) -> Pairs:
    found = dict[tuple[str, str, bool], int]()
    for (gold, said, all_agree), rows in pairs.items():
        if len(gold.split(LEVELS)) >= level:
            pair = _prefix(gold, level), _prefix(said, level), all_agree
            found[pair] = found.get(pair, 0) + rows
    return found


def _prefix(path: str, level: int) -> str:
    return LEVELS.join(path.split(LEVELS)[:level])


def _names(key: str, several: bool = True) -> Sequence[str]:
    """The labels of a key; none for a row to which the model gave no answer."""
    if not several:
        return [key]
    return [] if key == NONE else json.loads(key)


def _sets(pairs: Pairs) -> Sets:
    return [(frozenset(_names(g)), frozenset(_names(s)), rows) for (g, s, _), rows in pairs.items()]


def _at(sets: Sets, level: int) -> Sets:
    """The labels as far as ``level``, without those that do not go so deep."""

    def cut(labels: frozenset[str]) -> frozenset[str]:
        deep = [label for label in labels if len(label.split(LEVELS)) >= level]
        return frozenset(_prefix(label, level) for label in deep)

    return [(cut(gold), cut(said), rows) for gold, said, rows in sets if cut(gold)]


def _overall(sets: Sets) -> Sequence[str]:
    """Rows, the share of rows with the same labels, and F1 over all labels of all rows."""
    total = sum(rows for *_, rows in sets)
    if not total:
        return "0", "-", "-"
    same = sum(rows for gold, said, rows in sets if gold == said)
    names = sorted({name for gold, said, _ in sets for name in gold | said})
    f1 = _share(_scores(sets, names, "micro")[2]) if names else "-"
    return f"{total:,}", f"{same / total:.1%}", f1


def _scores(sets: Sets, names: Sequence[str], average: str | None) -> Any:
    """Precision, recall, F1 and the number of rows by people: of each label, or over all."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    def given(labels: frozenset[str]) -> list[bool]:
        # And a last one that nobody gives: a single column would be two classes to scikit-learn.
        return [*(name in labels for name in names), False]

    gold = np.array([given(labels) for labels, _, _ in sets])
    said = np.array([given(labels) for _, labels, _ in sets])
    weights = [rows for *_, rows in sets]
    found = precision_recall_fscore_support(
        gold, said, average=average, sample_weight=weights, zero_division=np.nan
    )
    return found if average else [values[:-1] for values in found]


def _share(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"  # NaN: the label is never given
