"""Detection of thinking that loops, while it is generated; no I/O.

vLLM's own detection checks every pattern length at every token. With patterns of up to 1,024 tokens
that costs a millisecond per token and sequence, in the loop that all sequences share. This detector
checks every few hundred tokens, and finds near-repeats too.
"""

import re
from array import array
from collections import deque
from collections.abc import Callable, Sequence

CHECK_TOKENS = 256
# An exact loop repeats one period at least this often, over at least this many tokens.
EXACT_TOKENS, EXACT_ROUNDS = 1024, 4
MAX_PERIOD_TOKENS = 1024
# The period is the distance back to the last place where this many final tokens stood before.
ANCHOR_TOKENS = 16
# Of text without a sentence end, only this many characters are kept.
MAX_SENTENCE_CHARACTERS = 8192
MAX_CHARACTER_TOKENS = 4  # a character has up to 4 bytes in UTF-8, each of which can be a token
# A near-loop: each sentence of one of these windows occurs this often in it, on average.
WINDOWS, OCCURRENCES = (24, 48, 96, 192, 384), 6

_SENTENCE_END = re.compile(r"\n|(?<=[.!?;:])\s")
_LETTER = re.compile(r"[^\W\d_]")
# Words that QwQ puts before a sentence that it repeats.
_FILLER = re.compile(
    r"^(?:(?:wait|hmm+|oh|ah|so|but|well|again|now|okay|ok|yes|no|and|or|alternatively|actually"
    r"|therefore|then|let me see|let's see|hold on)\b[\s,.!?:;…-]*)+"
)


class RepetitionDetector:
    """Detects loops in the tokens of one trace. ``decode``: token ids to text."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids, self._unchecked = array("i"), list[int]()
        self._undecoded: list[int] = []  # the first tokens of a character
        self._sentence_start = ""
        self._sentences: deque[str] = deque(maxlen=WINDOWS[-1])
        self._counts: dict[int, dict[str, int]] = {window: {} for window in WINDOWS}

    def add(self, new: Sequence[int]) -> bool:
        """Add the next tokens; return whether the trace loops, checked every `CHECK_TOKENS`."""
        self._unchecked.extend(new)
        if len(self._unchecked) < CHECK_TOKENS:
            return False
        new, self._unchecked = self._unchecked, []
        self._token_ids.extend(new)
        del self._token_ids[: -(EXACT_ROUNDS + 1) * MAX_PERIOD_TOKENS]
        return self._repeats_exactly() or self._repeats_nearly(new)

    def _repeats_exactly(self) -> bool:
        """Whether the last tokens are one period over and over. Offsets here are in bytes."""
        data = self._token_ids.tobytes()
        size, anchor_size = self._token_ids.itemsize, ANCHOR_TOKENS * self._token_ids.itemsize
        if len(data) < EXACT_TOKENS * size:
            return False
        anchor = data[-anchor_size:]
        first = max(0, len(data) - anchor_size - MAX_PERIOD_TOKENS * size)
        at = data.rfind(anchor, first, len(data) - 1)
        while at >= 0 and at % size:  # a match that is not aligned to token ids
            at = data.rfind(anchor, first, at + anchor_size - 1)
        if at < 0:
            return False
        period = len(data) - anchor_size - at
        length = max(EXACT_TOKENS * size, EXACT_ROUNDS * period)
        return len(data) >= length and data[-length:-period] == data[-length + period :]

    def _repeats_nearly(self, new: Sequence[int]) -> bool:
        text = self._sentence_start + self._decode_whole_characters(new)
        *sentences, start = _SENTENCE_END.split(text)
        self._sentence_start = start[-MAX_SENTENCE_CHARACTERS:]
        # All sentences have to be counted, also those after a loop.
        loops = [self._loops_with(plain) for plain in map(_normalized, sentences) if plain]
        return any(loops)

    def _decode_whole_characters(self, new: Sequence[int]) -> str:
        """The text of the next tokens; the tokens of an incomplete character wait for the rest."""
        token_ids = [*self._undecoded, *new]
        for waiting in range(min(MAX_CHARACTER_TOKENS, len(token_ids))):
            text = self._decode(token_ids[: len(token_ids) - waiting])
            if not text.endswith("\ufffd"):
                break
        else:
            waiting, text = 0, self._decode(token_ids)
        self._undecoded = token_ids[len(token_ids) - waiting :]
        return text

    def _loops_with(self, sentence: str) -> bool:
        """Count ``sentence`` in each window; return whether one of the windows loops with it."""
        sentences = self._sentences
        for window, counts in self._counts.items():
            counts[sentence] = counts.get(sentence, 0) + 1
            if len(sentences) >= window:
                leaving = sentences[-window]
                counts[leaving] -= 1
                if not counts[leaving]:
                    del counts[leaving]
        sentences.append(sentence)
        return any(
            len(sentences) >= window and len(counts) * OCCURRENCES <= window
            for window, counts in self._counts.items()
        )


def _normalized(sentence: str) -> str:
    """``sentence`` without fillers, case and extra spaces; empty if it has no letters."""
    if not _LETTER.search(sentence):
        return ""
    plain = " ".join(sentence.lower().split())
    return _FILLER.sub("", plain) or plain
