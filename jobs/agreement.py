"""How well the model's labels agree with people's, computed by scikit-learn; no I/O."""

from collections.abc import Iterator, Mapping, Sequence

from jobs.markdown import literal, table_lines

# A confusion table of more labels is too wide to read.
MOST_SHOWN = 12
# With more labels, the matrix for kappa takes gigabytes.
MOST_COMPARED = 1000

# Rows by (people's label, the model's label, whether all samples of the row agree).
Pairs = Mapping[tuple[str, str, bool], int]


def agreement_lines(pairs: Pairs) -> Iterator[str]:
    """Accuracy, Cohen's kappa and the confusion table, as Markdown.

    A row to which the model gave no label counts as wrong.
    """
    groups = {
        "all rows": pairs,
        "all samples agree": {pair: rows for pair, rows in pairs.items() if pair[2]},
        "some differ": {pair: rows for pair, rows in pairs.items() if not pair[2]},
    }
    scores = [_scores(name, group) for name, group in groups.items() if group]
    yield from table_lines(["compared with people", "rows", "accuracy", "Cohen's kappa"], scores)
    yield from _confusion_lines(pairs)


def _scores(name: str, pairs: Pairs) -> Sequence[str]:
    from sklearn.metrics import accuracy_score, cohen_kappa_score

    gold, labels, weights = _columns(pairs)
    accuracy = accuracy_score(gold, labels, sample_weight=weights)
    kappa = "-"  # undefined with a single label: there is no chance agreement to correct for
    if 1 < len({*gold, *labels}) <= MOST_COMPARED:
        kappa = f"{cohen_kappa_score(gold, labels, sample_weight=weights):.3f}"
    return name, f"{sum(weights):,}", f"{accuracy:.1%}", kappa


def _confusion_lines(pairs: Pairs) -> Iterator[str]:
    from sklearn.metrics import confusion_matrix

    gold, labels, weights = _columns(pairs)
    names = sorted({*gold, *labels})
    yield ""
    if len(names) > MOST_SHOWN:
        yield f"(the confusion table has {len(names)} labels and is left out)"
        return
    matrix = confusion_matrix(gold, labels, labels=names, sample_weight=weights).tolist()
    rows = [
        [literal(name), *(f"{int(count):,}" for count in counts)]
        for name, counts in zip(names, matrix, strict=True)
        if any(counts)
    ]
    yield from table_lines([r"people \ model", *map(literal, names)], rows)


def _columns(pairs: Pairs) -> tuple[list[str], list[str], list[int]]:
    """People's labels, the model's labels, and the number of rows with both."""
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], list(pairs.values())
