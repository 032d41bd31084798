"""Thinking that goes in circles, found while it is generated; no I/O.

vLLM's own detection looks at every pattern length at every token: with patterns of up to 1,024
tokens that is a millisecond a token and sequence, in the loop that all sequences wait for. This one
looks every few hundred tokens, and sees near-repeats too.
"""

import re
from array import array
from collections import deque
from collections.abc import Callable, Sequence

LOOK_TOKENS = 256
# Exact repeats: so many tokens, and so many rounds, of nothing but the same.
EXACT_TOKENS, EXACT_ROUNDS = 1024, 4
LONGEST_PERIOD = 1024
# Two stretches that agree in so many tokens are looked at for a period.
ANCHOR_TOKENS = 16
# What is longer without an end is no sentence; only its last characters are kept.
LONGEST_SENTENCE = 8192
LONGEST_CHARACTER = 4  # bytes in UTF-8, each of which can be a token
# Near-repeats: among the last so many sentences, each came so often on average.
WINDOWS, OCCURRENCES = (24, 48, 96, 192, 384), 6

_ENDS = re.compile(r"\n|(?<=[.!?;:])\s")
_LETTER = re.compile(r"[^\W\d_]")
# What people, and QwQ, put in front of what they say again.
_FILLER = re.compile(
    r"^(?:(?:wait|hmm+|oh|ah|so|but|well|again|now|okay|ok|yes|no|and|or|alternatively|actually"
    r"|therefore|then|let me see|let's see|hold on)\b[\s,.!?:;…-]*)+"
)


class RepetitionDetector:
    """Watches the tokens of one trace. ``decode``: token ids to text."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids, self._new = array("i"), list[int]()
        self._held: list[int] = []
        self._rest = ""
        self._sentences: deque[str] = deque(maxlen=WINDOWS[-1])
        self._counts: dict[int, dict[str, int]] = {window: {} for window in WINDOWS}

    def add(self, new: Sequence[int]) -> bool:
        """Take the next tokens; whether the trace goes in circles, as far as looked at by now."""
        self._new.extend(new)
        if len(self._new) < LOOK_TOKENS:
            return False
        new, self._new = self._new, []
        self._token_ids.extend(new)
        del self._token_ids[: -(EXACT_ROUNDS + 1) * LONGEST_PERIOD]
        return self._repeats_exactly() or self._repeats_nearly(new)

    def _repeats_exactly(self) -> bool:
        data = self._token_ids.tobytes()
        size, anchor = self._token_ids.itemsize, ANCHOR_TOKENS * self._token_ids.itemsize
        if len(data) < EXACT_TOKENS * size:
            return False
        tail, first = data[-anchor:], max(0, len(data) - anchor - LONGEST_PERIOD * size)
        at = data.rfind(tail, first, len(data) - 1)
        while at >= 0 and at % size:  # between two token ids
            at = data.rfind(tail, first, at + anchor - 1)
        if at < 0:
            return False
        period = len(data) - anchor - at
        length = max(EXACT_TOKENS * size, EXACT_ROUNDS * period)
        return len(data) >= length and data[-length:-period] == data[-length + period :]

    def _repeats_nearly(self, new: Sequence[int]) -> bool:
        # The rest is the beginning of a sentence that is not whole yet.
        *whole, self._rest = _ENDS.split(self._rest + self._text_of(new))
        self._rest = self._rest[-LONGEST_SENTENCE:]
        found = [self._loops_with(plain) for plain in map(_normal, whole) if plain]
        return any(found)

    def _text_of(self, new: Sequence[int]) -> str:
        """The text of the next tokens; the first bytes of a character wait for its last."""
        token_ids = [*self._held, *new]
        for held in range(min(LONGEST_CHARACTER, len(token_ids))):
            text = self._decode(token_ids[: len(token_ids) - held])
            if not text.endswith("\ufffd"):
                break
        else:
            held, text = 0, self._decode(token_ids)
        self._held = token_ids[len(token_ids) - held :]
        return text

    def _loops_with(self, sentence: str) -> bool:
        past = self._sentences
        for window, counts in self._counts.items():
            counts[sentence] = counts.get(sentence, 0) + 1
            if len(past) >= window:
                old = past[-window]
                counts[old] -= 1
                if not counts[old]:
                    del counts[old]
        past.append(sentence)
        return any(
            len(past) >= window and len(counts) * OCCURRENCES <= window
            for window, counts in self._counts.items()
        )


def _normal(sentence: str) -> str:
    """A sentence without its fillers, case and spacing; empty if it has no letters."""
    if not _LETTER.search(sentence):
        return ""
    plain = " ".join(sentence.lower().split())
    return _FILLER.sub("", plain) or plain
