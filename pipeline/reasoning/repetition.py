"""Detection of thinking that loops, while it is generated; no I/O.

vLLM's own detection checks every pattern length at every token. With patterns of up to 1,024 tokens
that costs a millisecond per token and sequence, in the loop that all sequences share. This detector
checks every few hundred tokens, at a cost per token that does not depend on the pattern's length.
One test finds passages that come again token by token, another the same sentences in any order.
"""

import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

CHECK_TOKENS = 256
# Shorter n-grams also come again in truth tables and matrices of zeros.
NGRAM_TOKENS = 24
# Each n-gram that stood in the text before counts 1, each new one takes off 6. So at least 6 of 7
# are old in a loop, and text between two copies of a long passage outweighs them. A loop has a
# count of 768, and has come round twice after its first time.
NEW_NGRAM, LOOP_NGRAMS, LOOP_RETURNS = -6, 768, 2
# Its length is a median over so many checks: copied text may have its own short repeats inside.
LENGTH_CHECKS = 8
# An n-gram is forgotten if later ones take both its slots: 2 in 1,000 of a loop of 3,000 tokens.
SLOT_BITS = 16
# Of text without a sentence end, only this many characters are kept.
MAX_SENTENCE_CHARACTERS = 8192
# And this many of text without letters, which belongs to the sentence after it: "57: composite".
MAX_NUMBER_CHARACTERS = 64
MAX_CHARACTER_TOKENS = 4  # a character has up to 4 bytes in UTF-8, each of which can be a token
# Each sentence of one of these windows occurs this often in it, on average. Lists of short verdicts
# do that too, so a window has at least this many characters.
WINDOWS, OCCURRENCES, WINDOW_CHARACTERS = (96, 192, 384), 6, 3000
# Where a loop began is certain if this share of all n-grams from there on are old. The line
# that leads into it is left out, if it began at most so many tokens before.
LEAST_OLD, LINE_TOKENS = 0.95, 64

# An ellipsis ends no sentence: "A → ... → B → ..." is one, however long it grows.
_SENTENCE_END = re.compile(r"\n|(?<=[!?;:])\s|(?<=(?<!\.)\.)\s")
_LETTER = re.compile(r"[^\W\d_]")
# Words that QwQ puts before a sentence that it repeats.
_FILLER = re.compile(
    r"^(?:(?:wait|hmm+|oh|ah|so|but|well|again|now|okay|ok|yes|no|and|or|alternatively|actually"
    r"|therefore|then|let me see|let's see|hold on)\b[\s,.!?:;…-]*)+"
)
_HASH = np.uint64(0x9E3779B97F4A7C15) ** np.arange(NGRAM_TOKENS, dtype=np.uint64)


class RepetitionDetector:
    """Detects loops in the tokens of one trace. ``decode``: token ids to text."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._unchecked = list[int]()
        self._passages, self._sentences = _Passages(), _Sentences(decode)

    def add(self, new: Sequence[int]) -> bool:
        """Add the next tokens; return whether the trace loops, checked every `CHECK_TOKENS`."""
        self._unchecked.extend(new)
        end = len(self._unchecked) // CHECK_TOKENS * CHECK_TOKENS
        checks = [self._unchecked[at : at + CHECK_TOKENS] for at in range(0, end, CHECK_TOKENS)]
        del self._unchecked[:end]
        # All tokens have to be counted, also those after a loop.
        loops = [self._passages.loop(ids) | self._sentences.loop(ids) for ids in checks]
        return any(loops)


def loop_onset(token_ids: Sequence[int], decode: Callable[[list[int]], str]) -> int | None:
    """How many tokens stood before a trace, found to loop, began to say only what it had said.

    One round of the loop is among them. None where that is not certain: the rounds differ, or the
    same sentences come in any order.
    """
    if len(token_ids) < NGRAM_TOKENS:
        return None
    ids = np.array(token_ids, np.uint64)
    ngrams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM_TOKENS) @ _HASH
    _, first, which = np.unique(ngrams, return_index=True, return_inverse=True)
    is_old = first[which] < np.arange(len(ngrams))
    counts = np.cumsum(np.where(is_old, 1, NEW_NGRAM))
    counts -= np.minimum.accumulate(np.minimum(counts, 0))
    begin = int(np.flatnonzero(counts == 0)[-1]) + 1  # the first n-gram is new
    if counts[-1] < LOOP_NGRAMS or is_old[begin:].mean() < LEAST_OLD:
        return None
    line_ends = (
        at for at in range(begin, max(0, begin - LINE_TOKENS), -1)
        if decode([int(ids[at - 1])]).endswith("\n")
    )  # fmt: skip
    return next(line_ends, begin)


class _Passages:
    """Whether n-grams of tokens come again: Page's CUSUM test, on those that stood before."""

    def __init__(self) -> None:
        self._tail = np.empty(0, np.uint64)
        self._hashes = array("Q")  # of all n-grams so far
        # Two slots for each hash, with the number of the last n-gram that took it; 0 if none.
        self._slots = np.zeros((2, 1 << SLOT_BITS), np.int32)
        self._count = 0
        self._distances = deque[NDArray[np.int64]](maxlen=LENGTH_CHECKS)

    def loop(self, new: list[int]) -> bool:
        """Add the tokens of a check; return whether the text loops."""
        token_ids = np.concatenate((self._tail, np.array(new, np.uint64)))
        self._tail = token_ids[1 - NGRAM_TOKENS :]
        if len(token_ids) < NGRAM_TOKENS:
            return False
        ngrams = np.lib.stride_tricks.sliding_window_view(token_ids, NGRAM_TOKENS)
        distances = self._distances_back(ngrams @ _HASH)
        is_old = distances > 0
        counts = np.cumsum(np.where(is_old, 1, NEW_NGRAM))
        self._count = int(counts[-1] - min(-self._count, counts.min()))
        if not self._count:
            self._distances.clear()
        self._distances.append(distances[is_old])
        if counts[-1] <= 0 or self._count < LOOP_NGRAMS:
            return False
        return self._count >= LOOP_RETURNS * float(np.median(np.concatenate(self._distances)))

    def _distances_back(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How many tokens before each n-gram it stood last, in earlier checks; 0 if it did not."""
        numbers = np.arange(1, len(hashes) + 1) + len(self._hashes)
        self._hashes.frombytes(hashes.tobytes())
        all_hashes = np.frombuffer(self._hashes, np.uint64)
        last = np.zeros(len(hashes), np.int64)
        for slots, bits in zip(self._slots, (64 - SLOT_BITS, 64 - 2 * SLOT_BITS), strict=True):
            slot = (hashes >> np.uint64(bits)) & np.uint64((1 << SLOT_BITS) - 1)
            number = slots[slot]
            is_same = (number > 0) & (all_hashes[number - 1] == hashes)
            np.maximum(last, np.where(is_same, number, 0), out=last)
            slots[slot] = numbers
        return np.where(last > 0, numbers - last, 0)


class _Sentences:
    """Whether a few sentences come again and again, in any order and behind other fillers."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._undecoded: list[int] = []  # the first tokens of a character
        self._sentence_start = self._number = ""
        self._sentences: deque[str] = deque(maxlen=WINDOWS[-1])
        self._counts: dict[int, dict[str, int]] = {window: {} for window in WINDOWS}
        self._characters = dict.fromkeys(WINDOWS, 0)

    def loop(self, new: list[int]) -> bool:
        """Add the tokens of a check; return whether the text loops."""
        text = self._sentence_start + self._decode_whole_characters(new)
        *sentences, start = _SENTENCE_END.split(text)
        self._sentence_start = start[-MAX_SENTENCE_CHARACTERS:]
        # All sentences have to be counted, also those after a loop.
        loops = [self._loops_with(whole) for whole in self._with_numbers(sentences)]
        return any(loops)

    def _with_numbers(self, sentences: list[str]) -> Iterator[str]:
        """Those with letters, each behind the text without letters that stood before it."""
        for sentence in sentences:
            if _LETTER.search(sentence):
                yield f"{self._number} {_normalized(sentence)}"
                self._number = ""
            else:
                self._number = f"{self._number} {sentence.strip()}"[-MAX_NUMBER_CHARACTERS:].strip()

    def _decode_whole_characters(self, new: list[int]) -> str:
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
            self._characters[window] += len(sentence)
            if len(sentences) >= window:
                leaving = sentences[-window]
                self._characters[window] -= len(leaving)
                counts[leaving] -= 1
                if not counts[leaving]:
                    del counts[leaving]
        sentences.append(sentence)
        return any(
            len(sentences) >= window
            and len(counts) * OCCURRENCES <= window
            and self._characters[window] >= WINDOW_CHARACTERS
            for window, counts in self._counts.items()
        )


def _normalized(sentence: str) -> str:
    """``sentence`` without fillers, case and extra spaces."""
    plain = " ".join(sentence.lower().split())
    return _FILLER.sub("", plain) or plain
