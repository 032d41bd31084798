"""How well the model's labels or scores agree with people's, by scikit-learn; no I/O."""

from collections.abc import Iterator, Mapping, Sequence

from jobs.markdown import literal, table_lines

# A confusion table of more labels is too wide to read.
MOST_SHOWN = 12
# With more labels, the matrix for kappa takes gigabytes.
MOST_COMPARED = 1000

# Rows by (people's label, the model's label, whether all samples of the row agree).
Pairs = Mapping[tuple[str, str, bool], int]


def agreement_lines(pairs: Pairs, scale: Sequence[str] = ()) -> Iterator[str]:
    """Accuracy, Cohen's kappa and the confusion table, as Markdown.

    A row to which the model gave no label counts as wrong. ``scale``: all scores in order, where
    labels are scores. Kappa has quadratic weights then, and is of the rows with a score.
    """
    groups = groups_of(pairs).items()
    scores = [[name, *scores_line(group, scale)] for name, group in groups if group]
    kappa = "Cohen's kappa" + (" (quadratic weights)" if scale else "")
    yield from table_lines(["compared with people", "rows", "accuracy", kappa], scores)
    yield from _confusion_lines(pairs, scale)


def groups_of(pairs: Pairs) -> Mapping[str, Pairs]:
    """All rows, those whose samples agree, and those whose samples differ; each may be empty."""
    return {
        "all rows": pairs,
        "all samples agree": {pair: rows for pair, rows in pairs.items() if pair[2]},
        "some differ": {pair: rows for pair, rows in pairs.items() if not pair[2]},
    }


def scores_line(pairs: Pairs, scale: Sequence[str] = ()) -> Sequence[str]:
    """Rows, accuracy and Cohen's kappa; ``scale`` as `agreement_lines` has it."""
    from sklearn.metrics import accuracy_score

    gold, labels, weights = _columns(pairs)
    accuracy = accuracy_score(gold, labels, sample_weight=weights)
    return f"{sum(weights):,}", f"{accuracy:.1%}", _kappa(pairs, scale)


def _kappa(pairs: Pairs, scale: Sequence[str]) -> str:
    """Cohen's kappa, undefined with a single label: there is no chance agreement to correct for."""
    from sklearn.metrics import cohen_kappa_score

    if scale:
        pairs = {pair: rows for pair, rows in pairs.items() if {*pair[:2]} <= {*scale}}
    gold, labels, weights = _columns(pairs)
    if not 1 < len({*gold, *labels}) <= MOST_COMPARED:
        return "-"
    weighting = {"labels": list(scale), "weights": "quadratic"} if scale else {}
    return f"{cohen_kappa_score(gold, labels, sample_weight=weights, **weighting):.3f}"


def _confusion_lines(pairs: Pairs, scale: Sequence[str]) -> Iterator[str]:
    from sklearn.metrics import confusion_matrix

    gold, labels, weights = _columns(pairs)
    present = {*gold, *labels}
    names = [*(score for score in scale if score in present), *sorted(present - {*scale})]
    if len(names) < 2:
        return  # all agree on one label
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
