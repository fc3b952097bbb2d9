"""Text → token ids by a folder's own tokenizer.json, read as it stands.

`AutoTokenizer` rebuilds some of these tokenizers with other rules, and may ask to run a folder's
code. Here `tokenizers` reads the file, and the rules that the families keep outside of it (which
end-of-text token, and whether truncation may cut it) are written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from teacher_cache.encoders.checkpoint import read_json
from teacher_cache.encoders.protocol import IntArray
from teacher_cache.teachers import TeacherError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, without the padding and truncation its file may have stored.

    Raises:
        TeacherError: tokenizer.json is missing or not one.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise TeacherError(f"{path} is missing; a tokenizer is read from that file alone")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the bindings raise plain Exception
        raise TeacherError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_vocabulary(folder: Path, rows: int) -> None:
    """Refuse a tokenizer that can give ids beyond the `rows` of the model's embedding table.

    Raises:
        TeacherError: naming the first such token.
    """
    beyond = [
        (id_, token) for token, id_ in load_tokenizer(folder).get_vocab().items() if id_ >= rows
    ]
    if beyond:
        raise TeacherError(
            f"{folder / TOKENIZER_FILE} gives {min(beyond)[1]!r} the id {min(beyond)[0]}, but the "
            f"model knows {rows} tokens: they are not of one model"
        )


class EosKeptTokenizer:
    """Stella's family: the end-of-text token is kept where a text is cut.

    Its own tokenizer class appends the token when `add_eos_token` stands in
    tokenizer_config.json; tokenizer.json does not know of it, unless its post-processor appends
    the same token already. `eos_id` is None where texts end without one. `pad_id` is the
    end-of-text token, or 0: padding is masked.
    """

    def __init__(self, folder: Path, max_tokens: int | None) -> None:
        """Read a folder. Texts of more than `max_tokens` are cut, none where it is None.

        Raises:
            TeacherError: the flag asks for a token that the vocabulary lacks, or `max_tokens`
                leaves no room for a text beside it.
        """
        config = read_json(folder / CONFIG_FILE, dict)
        token = config.get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        self._tokenizer = load_tokenizer(folder)
        found = self._tokenizer.token_to_id(content) if content else None
        self.pad_id: int = found if found is not None else 0
        wanted = bool(config.get("add_eos_token"))
        if wanted and found is None:
            raise TeacherError(
                f"{folder / CONFIG_FILE} asks for an end-of-text token (add_eos_token) and names "
                f"{content!r}, which is not in {TOKENIZER_FILE}"
            )
        appended = found is not None and self._appends(found)
        self.eos_id = found if wanted or appended else None
        self._append = wanted and not appended
        if max_tokens is None:
            return
        room = max_tokens - int(self._append)
        if room <= self._tokenizer.num_special_tokens_to_add(is_pair=False):
            raise TeacherError(
                f"max_tokens {max_tokens} leaves no room for a text beside the special tokens "
                f"of {folder}"
            )
        self._tokenizer.enable_truncation(room)

    def ids(self, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of each text, at most `max_tokens`, the end-of-text token among them."""
        end = [self.eos_id] if self._append else []
        return [
            np.array([*encoding.ids, *end], np.int32)
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]

    def _appends(self, eos_id: int) -> bool:
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        special = self._tokenizer.encode("a").ids
        return len(special) > len(plain) and special[-1] == eos_id


class EosWrittenTokenizer:
    """NV-Embed's family: `</s>` is written behind the text as a string, and truncation cuts it.

    The tokenizer prepends `<s>`. Literal `</s>`, `<s>` or `<unk>` inside a text become special
    tokens, as they do in the original.
    """

    EOS = "</s>"
    BOS = "<s>"

    def __init__(self, folder: Path, max_tokens: int | None) -> None:
        """Read a folder. Texts of more than `max_tokens` are cut, none where it is None.

        Raises:
            TeacherError: the tokenizer does not read `</s>` as one token, or prepends no `<s>`.
        """
        # Two, as truncation is a state of a tokenizer, and a prompt is counted without it.
        self._counter = load_tokenizer(folder)
        self._tokenizer = load_tokenizer(folder)
        self.eos_id = self._special(folder, self.EOS)
        bos_id = self._special(folder, self.BOS)
        if self._tokenizer.encode("a").ids[:1] != [bos_id]:
            raise TeacherError(f"{folder / TOKENIZER_FILE} does not put {self.BOS} before a text")
        if max_tokens is not None:
            self._tokenizer.enable_truncation(max_tokens)

    def ids(self, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of each text with `</s>` written behind it, at most `max_tokens`."""
        return [
            np.array(encoding.ids, np.int32)
            for encoding in self._tokenizer.encode_batch_fast([text + self.EOS for text in texts])
        ]

    def count(self, prompt: str) -> int:
        """Tokens of a prompt by itself, special tokens not counted, never cut.

        This is the original's own measure of how much of a text is instruction. It is a count and
        no span: with a trailing space, the lone `▁` that ends the prompt stands in for `<s>`.
        """
        return len(self._counter.encode(prompt, add_special_tokens=False).ids)

    def _special(self, folder: Path, token: str) -> int:
        found: int | None = self._counter.token_to_id(token)
        ids = self._counter.encode("a" + token, add_special_tokens=False).ids
        if found is None or ids[-1:] != [found]:
            raise TeacherError(
                f"{folder / TOKENIZER_FILE} does not read {token} as one special token, "
                "which this family needs"
            )
        return found
