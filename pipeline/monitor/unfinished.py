"""Which rows of the parts under way are still to be made durable; no I/O."""

from collections.abc import Mapping, Sequence


class UnfinishedRows:
    """Counts rows that become durable; ``rows_to_do``: by part, how many there are to do.

    ``rows``: how many there will be in all, as far as is known.
    """

    def __init__(self, rows_to_do: Mapping[str, int]) -> None:
        self._rows_to_do, self._durable = dict(rows_to_do), dict[str, set[int]]()
        self._given = self.rows = sum(rows_to_do.values())

    def add(self, rows_to_do: Mapping[str, int], to_come: int) -> None:
        """So many more rows are to do, by part, and probably ``to_come`` after them."""
        for part, count in rows_to_do.items():
            self._rows_to_do[part] = self._rows_to_do.get(part, 0) + count
        self._given += sum(rows_to_do.values())
        self.rows = self._given + to_come

    def mark_durable(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
        """Record durable rows, by part; return the parts with none left to do.

        Without it, each task that writes a block would have to list the fragments of its part.
        """
        full = []
        for part, numbers in rows.items():
            durable = self._durable.setdefault(part, set())
            durable.update(numbers)
            if len(durable) >= self._rows_to_do.get(part, 0):
                full.append(part)
                del self._durable[part]
                self._rows_to_do.pop(part, None)  # a task that Ray repeats gets the same answer
        return full
