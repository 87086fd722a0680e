"""Texts as nothing but text: tokens in which no name of an added token stands for that token, and texts in pieces.

A title may hold ``<|im_end|>`` or ``<think>``. Tokenizers leave the names of special tokens alone when they are told
so, but go on taking those of other added tokens (Qwen's ``<think>`` and ``<tool_call>``), so where there are any, texts
are read by a copy in which all of them are special. Left out: markup, which is meant to be read (``templates``).
"""

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Any]] = WeakKeyDictionary()
"""Tokenizer -> how many tokens it had, and its copy."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; names of added tokens in it are text."""
    if not texts:
        return []
    copied = _copy(tokenizer)
    if copied is not None:
        return [found.ids for found in copied.encode_batch(list(texts), add_special_tokens=False)]
    call: Any = tokenizer
    return call(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def text_pieces(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> list[str]:
    """``text`` from its beginning to its end in pieces of about ``most`` tokens (0: in one), cut between tokens and
    before a blank that stands there, which is part of a word's token in most vocabularies. A tokenizer that is not of
    the tokenizers library does not say where its tokens stand; there a piece has ``most`` characters."""
    if most <= 0:
        return [text]
    cuts = list(range(0, len(text), most))
    if tokenizer.is_fast:
        call: Any = tokenizer
        found = call(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        cuts = [begin for begin, _ in found["offset_mapping"][::most]]
    begins = [0, *(at - 1 if text[at - 1 : at].isspace() else at for at in cuts[1:])]
    return [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)]) if end > begin]


def _copy(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The copy that reads texts; None where the tokenizer itself can."""
    if not tokenizer.is_fast or all(token.special for token in tokenizer.added_tokens_decoder.values()):
        return None
    size, copied = _COPIES.get(tokenizer, (0, None))
    if size != len(tokenizer):  # type: ignore[arg-type]
        from tokenizers import Tokenizer

        backend: Any = tokenizer
        values = json.loads(backend.backend_tokenizer.to_str())
        for token in values["added_tokens"]:
            token["special"] = True
        copied = Tokenizer.from_str(json.dumps(values))
        copied.encode_special_tokens = True
        copied.no_truncation()
        copied.no_padding()
        _COPIES[tokenizer] = (len(tokenizer), copied)  # type: ignore[arg-type]
    return copied
