"""Samples that repeat an accepted sample of the same prompt; no I/O.

A near duplicate has the prompt of an earlier accepted sample (apart from white space) and nearly
the same thinking and answer. Similarity is the Jaccard index of their five-word shingles, estimated
by MinHash. The same answer to another prompt is no duplicate, because short answers are right for
many prompts. The index takes about 1 KB of memory per accepted sample.
"""

import hashlib
import re
import zlib

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

SHINGLE_WORDS, PERMUTATIONS = 5, 128
# A word, or one character of a script without spaces (kana and CJK), or one punctuation mark.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")


Signature = NDArray[np.uint32]


class NearDuplicates:
    """An index of the accepted samples, by prompt. ``threshold``: the least similarity, 0 to 1."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._by_prompt: dict[bytes, list[tuple[str, Signature]]] = {}

    def find_or_add(self, sample_id: str, prompt: str, text: str) -> str | None:
        """The id of an earlier sample that this one repeats; if there is none, add this one.

        ``text``: thinking and answer of the sample.
        """
        key = hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=16).digest()
        signature, earlier = _signature(text), self._by_prompt.setdefault(key, [])
        for earlier_id, earlier_signature in earlier:
            if np.mean(earlier_signature == signature) >= self._threshold:
                return earlier_id
        earlier.append((sample_id, signature))
        return None


def _signature(text: str) -> Signature:
    """The MinHash signature of the shingles of ``text`` (shape: `PERMUTATIONS`)."""
    words = _WORD.findall(text.lower())
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    shingles = {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in starts}
    minhash = MinHash(PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    minhash.update_batch(shingles)
    return np.asarray(minhash.hashvalues, np.uint32)
