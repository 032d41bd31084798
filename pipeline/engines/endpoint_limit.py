"""How many requests a server gets at a time: additive increase, multiplicative decrease; no I/O.

The limit is halved when the server refuses a request or takes long to begin one, which is how a
queue in the server looks from outside. It grows while requests begin in good time: at first by one
with each of them, as in TCP's slow start, and after the first halving by one every `GROW_SECONDS`.
(TCP counts rounds; a round of reasoning traces takes half an hour.) Times are seconds of any clock
that does not go back.
"""

import math

FIRST_LIMIT = 16
GROW_SECONDS = 2.0
# A request began late if its first token took more than this, and this many times the usual. Both:
# a long prompt takes seconds, and on a slow server every prompt does.
LATE_SECONDS, LATE_FACTOR = 10.0, 4.0
# How quickly the shortest time to a first token is forgotten: by half in some 70 requests.
FADING = 1.01


class RequestLimit:
    """The limit of one server: ``value``, between 1 and ``most``."""

    def __init__(self, most: int) -> None:
        self.most, self.value = most, min(FIRST_LIMIT, most)
        self._is_starting, self._has_begun = True, False
        self._halved_at, self._usual = -math.inf, math.inf

    def begun(self, sent: float, now: float, running: int) -> None:
        """A request of the time ``sent`` has its first token; ``running``: at the server now."""
        seconds = now - sent
        self._usual = min(seconds, self._usual * FADING)
        if seconds > max(LATE_SECONDS, LATE_FACTOR * self._usual):
            self.congested(sent, now)
            return
        self._has_begun = True
        if self._is_starting:
            self.grow(running)

    def grow(self, running: int) -> None:
        """One more, if the limit is reached and a request has begun well since it last changed."""
        if self._has_begun and running >= self.value:
            self.value, self._has_begun = min(self.most, self.value + 1), False

    def congested(self, sent: float, now: float) -> None:
        """A request of the time ``sent`` was refused, lost or late.

        Requests that were sent before the last decrease say nothing about the limit since then.
        """
        if sent >= self._halved_at:
            self.value, self._halved_at = max(1, self.value // 2), now
            self._is_starting = self._has_begun = False
