"""The 64 texts of a golden file: what encoders of different making get wrong. No dependencies.

Half of them stand behind a prompt. 40 are cases of which each script, edge and literal special
token is one; 24 are plain prose of 1 to 800 words, so that the longest are cut at 512 tokens by
every tokenizer. A golden file keeps the texts that it was made from, so changing these here leaves
existing files as good as they were.
"""

# ruff: noqa: RUF001 - characters that look alike are the point

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

PROMPT = "Instruct: Find a text that says the same.\nQuery: "
BARE_PROMPT = "Instruct: Find a text that says the opposite.\nQuery:"
"""Without a space at its end: where a prompt is counted in tokens, that moves the count by one."""

_WORDS_OF_PROSE = (
    *(1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48),
    *(64, 85, 110, 140, 180, 230, 290, 340, 380, 420, 600, 800),
)

# In pairs of one kind: the first is given as it is, the second behind a prompt. Not even a text of
# no token at all is left out: behind a prompt it has the prompt's.
_CASES = (
    ("a", "7"),
    (" ", ""),
    (" a space before", "   three spaces before"),
    ("a space behind ", "a tab behind\t"),
    ("\na new line before", "a new line behind\n"),
    ("two\n\nparagraphs", "one\ttwo\t\tthree\r\nfour"),
    ("it ends </s> and goes on", "<s>it begins twice"),
    ("before<|endoftext|>after", "<unk> [SEP] <|im_end|> [MASK]"),
    ("https://example.org/a/b?c=1&d=%20#e", "3.14159 × 10⁻⁷, ½ and -1,000,000.00 €"),
    ("def area(r):\n    return 3 * r ** 2  # too small\n", "∀ε > 0 ∃δ > 0: |x − a| < δ"),
    ("no" * 120, "WHERE ARE theSmallHarbour_lights?!?!"),
    ("🙂 🚀 👩‍👩‍👧 ❤️", "𐌰𐌱𐌲 𝔯𝔦𝔳𝔢𝔯 𠜎𠜱"),
    ("zero\u200bwidth\u200djoined\ufeff", "soft\u00adhyphen \u202eturned\u202c ＦＵＬＬ ﬁne Ⅳ"),
    (
        unicodedata.normalize("NFC", "Żółta łódź płynie w dół rzeki."),
        unicodedata.normalize("NFD", "Die Brücke über den Fluß wird größer, très élégante."),
    ),
    ("Зимой река замерзает.", "Το ποτάμι παγώνει τον χειμώνα."),
    ("يتجمد النهر في الشتاء.", "הנהר קופא בחורף."),
    ("नदी सर्दियों में जम जाती है।", "শীতকালে নদী জমে যায়।"),
    ("แม่น้ำเป็นน้ำแข็งในฤดูหนาว", "ზამთარში მდინარე იყინება."),
    ("冬天河水结冰。", "冬になると川が凍る。"),
    ("겨울에는 강이 언다.", "In 冬 freezes the река ❄ 24 times."),
)

_PROSE = """
    the a this one every no some her his their river bridge harbour letter engine window winter
    morning teacher captain garden machine station forest market valley lantern paper silver stone
    island compass bottle mirror thunder needle carried opened turned wrote measured crossed
    repaired counted forgot remembered painted sold heard watched followed slowly often never again
    quietly under over behind near before without because while although and but old small cold
    bright broken quiet empty heavy green seven twelve 1907 42 electrical international
    photosynthesis unquestionably
"""


@dataclass(frozen=True, slots=True)
class GoldenText:
    """One input: a text and the prompt that is put before it, as one string with it."""

    prompt: str
    text: str


def golden_texts() -> tuple[GoldenText, ...]:
    """The 64 texts, always the same; every second one behind a prompt."""
    prose = list(_prose())
    pairs = [*_CASES, *zip(prose[::2], prose[1::2], strict=True)]
    # Every fourth prompt has no space at its end.
    prompts = [BARE_PROMPT if place % 4 == 3 else PROMPT for place in range(len(pairs))]
    texts = [
        (GoldenText("", plain), GoldenText(prompt, prompted))
        for (plain, prompted), prompt in zip(pairs, prompts, strict=True)
    ]
    return tuple(text for pair in texts for text in pair)


def to_lines(texts: tuple[GoldenText, ...]) -> str:
    """Texts as JSON lines, `{"prompt": …, "text": …}`, in ASCII: any environment reads the same."""
    return "".join(json.dumps(asdict(text)) + "\n" for text in texts)


def from_lines(lines: str) -> tuple[GoldenText, ...]:
    """Read what `to_lines` wrote.

    Raises:
        ValueError: naming the line that is no such object.
    """
    texts = []
    for number, line in enumerate(filter(None, lines.split("\n")), start=1):
        fields = _object(line)
        strings = all(isinstance(value, str) for value in fields.values())
        if set(fields) != {"prompt", "text"} or not strings:
            raise ValueError(f'line {number} is not {{"prompt": …, "text": …}}: {line[:60]!r}')
        texts.append(GoldenText(**fields))
    return tuple(texts)


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _prose() -> Iterator[str]:
    """Sentences of our own words, cut at each of the lengths."""
    vocabulary = _PROSE.split()
    for words in _WORDS_OF_PROSE:
        draw = random.Random(words).random  # the one method that is the same in every Python
        chosen = [vocabulary[int(draw() * len(vocabulary))] for _ in range(words)]
        start = 0
        while start < words:
            stop = min(start + 4 + int(draw() * 20), words)
            chosen[start] = chosen[start].capitalize()
            chosen[stop - 1] += "." if draw() < 0.8 else "?"
            if stop - start > 9:
                chosen[start + 4] += ","
            start = stop
        yield " ".join(chosen)
