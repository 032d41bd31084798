"""Groups of things that are equal, from pairs that are; no I/O."""


class Groups:
    """The numbers below ``count``, each by itself at first; the order of joins is no matter."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, i: int) -> int:
        """The least number of the group of ``i``."""
        while self._parents[i] != i:
            i = self._parents[i]
        return i

    def join(self, i: int, k: int) -> None:
        """Make one group of those of ``i`` and ``k``."""
        first, second = sorted((self.root(i), self.root(k)))
        self._parents[second] = first

    def lists(self) -> list[list[int]]:
        """All groups, and their numbers, in ascending order."""
        groups = dict[int, list[int]]()
        for i in range(len(self._parents)):
            groups.setdefault(self.root(i), []).append(i)
        return list(groups.values())
