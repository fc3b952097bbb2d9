"""What is done to texts before they are cached: documents in pieces, words out of order.

The paper cuts 30 % of the documents into short texts of 1 to 10 sentences and shuffles the words of
0.08 % of the texts. Here both are pure functions of the seed and of a text's own id: where a text
stands, and what stands around it, changes nothing.
"""

import xxhash

from data.sentences import sentences


def is_chosen(what: str, id_: bytes, fraction: float, seed: int) -> bool:
    """Decide whether `what` is done to the text of this id. What is stays so as fractions grow."""
    return _draw(what, id_, seed) < fraction * 2**64


def cut(text: str, id_: bytes, lengths: tuple[int, int], seed: int) -> list[str]:
    """Cut a text into pieces of so many sentences, each length as likely as the others.

    The last piece has what is left. All together are the text without the space between them, and
    each has its sentences as they stood. A text of one sentence stays whole.
    """
    shortest, longest = lengths
    spans = list(sentences(text))
    pieces: list[str] = []
    first = 0
    while first < len(spans):
        length = shortest + _below(longest - shortest + 1, "piece", id_, seed, len(pieces))
        last = min(first + length, len(spans)) - 1
        pieces.append(text[spans[first][0] : spans[last][1]])
        first = last + 1
    return pieces if len(pieces) > 1 else [text]


def shuffled(text: str, id_: bytes, seed: int) -> str:
    """Put the words of a text in random order, one space between two."""
    words = text.split()
    for last in range(len(words) - 1, 0, -1):
        other = _below(last + 1, "word", id_, seed, last)
        words[last], words[other] = words[other], words[last]
    return " ".join(words)


def _below(count: int, what: str, id_: bytes, seed: int, index: int) -> int:
    # Not random.Random: what its shuffle gives may change with the version of Python.
    return _draw(what, id_, seed, index) * count >> 64


def _draw(what: str, id_: bytes, seed: int, index: int = 0) -> int:
    """Draw 64 random bits, the same for the same arguments."""
    return xxhash.xxh3_64_intdigest(what.encode() + id_ + index.to_bytes(8, "big"), seed)
