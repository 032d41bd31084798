"""How well two labelings agree, by scikit-learn; no I/O."""

from collections.abc import Iterator, Mapping

# A confusion table of more labels than this is no table for people.
MOST_SHOWN = 12
# Of more labels, the table for kappa takes gigabytes.
MOST_COMPARED = 1000


def agreement_lines(pairs: Mapping[tuple[str, str, bool], int]) -> Iterator[str]:
    """Accuracy, Cohen's kappa and the confusion table, by scikit-learn; no label is a wrong one."""
    from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix

    yield "| compared with people | rows | accuracy | Cohen's kappa |"
    yield "|---|---|---|---|"
    for what, wanted in (("all rows", (True, False)), ("all samples agree", (True,)),
                         ("some differ", (False,))):  # fmt: skip
        chosen = {key: rows for key, rows in pairs.items() if key[2] in wanted}
        if not chosen:
            continue
        gold, found = [key[0] for key in chosen], [key[1] for key in chosen]
        weights = list(chosen.values())
        accuracy = accuracy_score(gold, found, sample_weight=weights)
        kappa = "-"  # with one label only there is no chance agreement to take off
        if 1 < len({*gold, *found}) <= MOST_COMPARED:
            kappa = f"{cohen_kappa_score(gold, found, sample_weight=weights):.3f}"
        yield f"| {what} | {sum(weights):,} | {accuracy:.1%} | {kappa} |"
    gold, found = [key[0] for key in pairs], [key[1] for key in pairs]
    labels = sorted({*gold, *found})
    if len(labels) > MOST_SHOWN:
        yield f"\n(a confusion table of {len(labels)} labels is left out)"
        return
    yield f"\n| people \\ model | {' | '.join(labels)} |"
    yield "|---" * (len(labels) + 1) + "|"
    matrix = confusion_matrix(gold, found, labels=labels, sample_weight=list(pairs.values()))
    for label, row in zip(labels, matrix.tolist(), strict=True):
        if any(row):
            yield f"| {label} | {' | '.join(f'{int(rows):,}' for rows in row)} |"
