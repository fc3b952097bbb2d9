"""Which texts were there already: the same to the character, or the same but for its dress."""

import unicodedata
from array import array
from functools import lru_cache
from typing import Literal

import xxhash

Verdict = Literal["new", "duplicate", "near duplicate"]

# ASCII punctuation and control characters that separate words. Signs such as + and $ count.
# In UTF-8 no other character has these bytes.
_PUNCTUATION = b"!\"#%&'()*,-./:;?@[\\]_{}"
_CONTROL = bytes((*range(0x20), 0x7F))
_TO_SPACE = bytes.maketrans(_PUNCTUATION + _CONTROL, b" " * (len(_PUNCTUATION) + len(_CONTROL)))


def near_key(text: str, id_: bytes) -> bytes:
    """Return the key that two texts share if they differ in nothing but their dress.

    Compatibility forms (ligatures, full width), case, punctuation, white space and invisible
    characters do not count (Unicode NFKC, case folding; categories P, Z, Cc and Cf). Words, digits,
    accents and signs such as + and $ do. A text of punctuation alone is like itself only: `id_`.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
        for character in set(text):
            instead = _dress(character)
            if instead is not None:
                text = text.replace(character, instead)
    words = text.encode().lower().translate(_TO_SPACE).split()
    return xxhash.xxh3_128_digest(b" ".join(words)) if words else id_


@lru_cache(maxsize=4096)
def _dress(character: str) -> str | None:
    """What stands in the key for a character beyond ASCII; None where that is itself."""
    kind = unicodedata.category(character)
    if character.isascii() or not (kind[0] in "PZ" or kind in ("Cc", "Cf")):
        return None
    return "" if kind == "Cf" else " "


class Seen:
    """The texts that were kept so far; with `near` also their keys, in twice the memory.

    Only kept texts are remembered, so that what was kept is all it takes to know what was seen.
    """

    def __init__(self, near: bool) -> None:
        self._ids = IdSet()
        self._keys = IdSet() if near else None

    def add(self, id_: bytes, text: str) -> Verdict:
        """Judge a text by those before it, and remember it if it is new."""
        if id_ in self._ids:
            return "duplicate"
        if self._keys is not None and not self._keys.add(near_key(text, id_)):
            return "near duplicate"
        self._ids.add(id_)
        return "new"


class IdSet:
    """The ids seen so far, kept as their first 64 bits in one flat table.

    Two different texts are taken for one with a chance of 2e-6 in a corpus of 8 million, and of
    3e-4 in one of 100 million. The tables take 134 MB and 1.1 GB, and 2.6 times that for the
    moment in which they grow; a Python set takes 650 MB and about 9 GB.
    """

    # Open addressing with linear probing. A key starts at the slot that its leading bits name,
    # so sorted keys lie in the order of their slots, and a larger table is filled in one go. A
    # free slot holds 0.

    def __init__(self) -> None:
        self._count = 0
        self._resize(12)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, id_: bytes) -> bool:
        key = _key(id_)
        return self._slots[self._slot(key)] == key

    def add(self, id_: bytes) -> bool:
        """Add an id; False if it was there already."""
        if not self._put(_key(id_)):
            return False
        self._count += 1
        if 4 * self._count > 3 * len(self._slots):
            self._grow()
        return True

    def _resize(self, bits: int) -> None:
        self._slots = array("Q", (0,)) * (1 << bits)
        self._shift = 64 - bits

    def _slot(self, key: int) -> int:
        """Return the slot that holds a key or, where none does, the one it belongs in."""
        slots = self._slots
        slot = key >> self._shift
        while (found := slots[slot]) and found != key:
            slot = (slot + 1) % len(slots)
        return slot

    def _put(self, key: int) -> bool:
        slot = self._slot(key)
        if self._slots[slot]:
            return False
        self._slots[slot] = key
        return True

    def _grow(self) -> None:
        import numpy as np

        keys = np.frombuffer(self._slots, np.uint64)
        keys = keys[keys != 0]
        keys.sort()
        self._resize(65 - self._shift)
        # Each key goes to its own slot or, where that is taken, behind the key before it.
        order = np.arange(len(keys))
        slots = (keys >> self._shift).astype(np.int64)
        slots -= order
        np.maximum.accumulate(slots, out=slots)
        slots += order
        fitting = int(np.searchsorted(slots, len(self._slots)))
        np.frombuffer(self._slots, np.uint64)[slots[:fitting]] = keys[:fitting]
        for key in keys[fitting:].tolist():
            self._put(key)


def _key(id_: bytes) -> int:
    return int.from_bytes(id_[:8], "big") or 1
