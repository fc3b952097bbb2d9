"""A student's tokenizer: `tokenizer.json` read directly, never rebuilt, never remote code.

`AutoTokenizer` of transformers 5 ignores `add_eos_token` for some families, so that every text
silently loses its EOS; what is read here is what the file says, with that flag honoured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from student.spec import StudentError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE = "TemplateProcessing"
"""As tokenizer.json calls what puts tokens around a text."""


class TextTokenizer:
    """Texts → token ids, special tokens included, cut at `max_tokens`. Never pads.

    Raises:
        StudentError: the folder has no tokenizer.json, or it is damaged.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise StudentError(f"{folder} has no {TOKENIZER_FILE}: expected a fast tokenizer")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise StudentError(f"{path} cannot be read: {error}") from None
        self.tokenizer.no_padding()
        self.max_tokens = max_tokens
        config = folder / CONFIG_FILE
        self.config: dict[str, Any] = json.loads(config.read_text()) if config.is_file() else {}
        if self.config.get("add_eos_token"):
            self._append_eos()
        self.tokenizer.enable_truncation(max_tokens)
        self.pad_id = self._id_of("pad_token") or 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Add special tokens that are not there yet; give the ids of those that were added."""
        from tokenizers import AddedToken

        known = self.tokenizer.get_vocab()
        new = [token for token in tokens if token not in known]
        self.tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in new]
        )
        return [self.tokenizer.get_vocab()[token] for token in new]

    def image_row(self, tokens: Sequence[str], count: int) -> tuple[list[int], int]:
        """The ids of a row that holds one image, and the place of its first image token.

        `tokens` are start, image and end; around them stands what stands around every text.

        Raises:
            StudentError: the tokenizer lacks one, or so many tokens are longer than a row may be.
        """
        known = self.tokenizer.get_vocab()
        lacking = [token for token in tokens if token not in known]
        if lacking:
            raise StudentError(f"the tokenizer lacks the image tokens {', '.join(lacking)}")
        start, image, end = tokens
        ids: list[int] = self.tokenizer.encode(start + image * count + end).ids
        number = known[image]
        if ids.count(number) != count or known[end] not in ids:
            raise StudentError(
                f"an image takes {count} tokens, a start, an end and what stands around a text; "
                f"max_tokens is {self.max_tokens}: give more, or fewer image_tokens"
            )
        return ids, ids.index(number)

    def save(self, folder: Path) -> None:
        """Write the tokenizer so that any loader reads it as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.no_truncation()
        self.tokenizer.save(str(folder / TOKENIZER_FILE))
        self.tokenizer.enable_truncation(self.max_tokens)
        # The generic class takes tokenizer.json at its word; a family's own class may rebuild it.
        config = {
            **self.config,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_tokens,
        }
        for name in ("auto_map", "add_eos_token", "add_bos_token"):
            config.pop(name, None)
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")

    def _id_of(self, role: str) -> int | None:
        token = self.config.get(role)
        content = token.get("content") if isinstance(token, dict) else token
        return None if content is None else self.tokenizer.token_to_id(content)

    def _append_eos(self) -> None:
        eos = self._id_of("eos_token")
        if eos is None:
            raise StudentError("the tokenizer asks for an EOS after each text but has none")
        if self.tokenizer.encode("a").ids[-1:] != [eos]:
            self.tokenizer = _ending_with(self.tokenizer, eos)


def _ending_with(tokenizer: Tokenizer, number: int) -> Tokenizer:
    """The same tokenizer, with a token behind all that it puts around a text."""
    token = tokenizer.id_to_token(number)
    state = json.loads(tokenizer.to_str())
    old = state["post_processor"]
    steps = [] if old is None else old["processors"] if old["type"] == "Sequence" else [old]
    # Written into the template that is there: a second one would take what the first one puts
    # before a text, and the text, for a pair of texts.
    template = next((step for step in steps if step["type"] == TEMPLATE), None)
    if template is None:
        whole = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        template = {"type": TEMPLATE, "single": whole[:1], "pair": whole, "special_tokens": {}}
        steps.append(template)
    template["single"].append({"SpecialToken": {"id": token, "type_id": 0}})
    template["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
    state["post_processor"] = {"type": "Sequence", "processors": steps}
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
