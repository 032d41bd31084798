"""How many requests a server gets at a time: additive increase, multiplicative decrease; no I/O.

The limit grows while requests begin to answer in good time, and is halved when the server refuses
one or takes long to begin, which is how a queue in the server looks from outside. (AIMD, with a
slow start, as in TCP.) Times are seconds of any clock that does not go back.
"""

import math

FIRST_LIMIT = 16
# A request began late if its first token took more than this, and this many times the usual. Both:
# a long prompt takes seconds, and on a slow server every prompt does.
LATE_SECONDS, LATE_FACTOR = 10.0, 4.0
# How quickly the shortest time to a first token is forgotten: by half in some 70 requests.
FADING = 1.01


class RequestLimit:
    """The limit of one server, ``most`` at most."""

    def __init__(self, most: int) -> None:
        self._most, self._limit = most, float(min(FIRST_LIMIT, most))
        self._is_starting, self._halved_at, self._usual = True, -math.inf, math.inf

    @property
    def value(self) -> int:
        """The limit now: 1 or more."""
        return int(self._limit)

    def begun(self, sent: float, now: float, running: int) -> None:
        """A request of the time ``sent`` has its first token; ``running``: at the server now.

        The limit grows only if it is reached: otherwise nothing is known of more requests.
        """
        seconds = now - sent
        self._usual = min(seconds, self._usual * FADING)
        if seconds > max(LATE_SECONDS, LATE_FACTOR * self._usual):
            self.congested(sent, now)
        elif running >= self.value:
            step = 1.0 if self._is_starting else 1 / self._limit
            self._limit = min(float(self._most), self._limit + step)

    def congested(self, sent: float, now: float) -> None:
        """A request of the time ``sent`` was refused, lost or late.

        Requests that were sent before the last decrease say nothing about the limit since then.
        """
        if sent >= self._halved_at:
            self._limit, self._halved_at = max(1.0, self._limit / 2), now
            self._is_starting = False
