"""SID codes as tokens of a language model.

Every code is one indivisible token such as ``<b_17>`` (MiniOneRec's form), and ``<|history|>`` opens every history.
Left out: the markup of a chat template, which comes from ``templates``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sidgym.envs.records import PAD_ITEM
from sidgym.sid.table import SidTable

HISTORY_TOKEN = "<|history|>"
FIRST_ITEM = 2**40
"""Where items are merged (``merger``), ``FIRST_ITEM + v`` stands for item v in a prompt; no token has such an id."""

NOISE = 0.1
"""Standard deviation of what sets new rows apart, as a share of the known rows' own."""


@dataclass(frozen=True)
class TokenMap:
    """Where the codes stand in the vocabulary."""

    levels: tuple[torch.Tensor, ...]  # L tensors (K_l,) int64: token id of code k on level l
    history: int  # id of HISTORY_TOKEN
    pad: int
    item_tokens: np.ndarray  # (N, L) int64: token ids of each item's SID
    before: tuple[int, ...] = ()  # markup before the opening token
    after: tuple[int, ...] = ()  # markup behind the last item
    merged: bool = False  # in prompts an item is one id, and not L

    @property
    def frame(self) -> int:
        """Tokens of a prompt besides its items'."""
        return len(self.before) + 1 + len(self.after)

    @property
    def per_item(self) -> int:
        """Tokens that an item takes in a prompt."""
        return 1 if self.merged else self.item_tokens.shape[1]

    def read(self, items: np.ndarray) -> np.ndarray:
        """Ids (..., per_item) that ``items`` (...) are read as; anything for padding."""
        return FIRST_ITEM + items[..., None] if self.merged else self.item_tokens[items]

    def prompts(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, P) and their mask (B, P) for histories (B, T), both padded on the left; P = frame + T * L, or
        frame + T where items are merged.

        The opening token stands right before the first item, so an empty history is a prompt of one token and markup.
        """
        batch, length = history.shape
        levels, opening = self.per_item, np.array([*self.before, self.history])
        present = history != PAD_ITEM
        tokens = np.full((batch, length * levels + self.frame), self.pad, dtype=np.int64)
        body = np.where(present[:, :, None], self.read(history), self.pad).reshape(batch, -1)
        tokens[:, len(opening) : len(opening) + length * levels] = body
        tokens[:, len(opening) + length * levels :] = self.after
        start = (~present).sum(axis=1) * levels
        tokens[np.arange(batch)[:, None], start[:, None] + np.arange(len(opening))] = opening
        mask = np.arange(tokens.shape[1])[None] >= start[:, None]
        return tokens, mask

    def codes_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Code of each token (..., L) on its level, -1 where the token is no code of that level."""
        out = torch.full_like(tokens, -1)
        for level, ids in enumerate(self.levels):
            match = tokens[..., level, None] == ids.to(tokens.device)
            out[..., level] = torch.where(match.any(-1), match.long().argmax(-1), -1)
        return out


def fresh_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows nothing but its special tokens, for a model that is to speak SIDs only."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def text_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of at most ``vocabulary`` tokens learned from ``texts``, for a model that starts from
    nothing and is to read and write text. Any text has tokens in it, whatever it was learned from.

    Raises ``ValueError`` for fewer tokens than there are bytes, and for no text at all.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    specials, alphabet = ["<pad>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(specials) + len(alphabet):
        raise ValueError(
            f"policy.text_vocabulary: expected at least {len(specials) + len(alphabet)} (every byte and the special "
            f"tokens), got {vocabulary}"
        )
    if not any(texts):
        raise ValueError("there is no text to learn a vocabulary from; use a data set with titles, or policy.path")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def add_sid_tokens(tokenizer: PreTrainedTokenizerBase, table: SidTable) -> int:
    """Adds the history token and every code of ``table`` that ``tokenizer`` lacks; how many were new."""
    names = [HISTORY_TOKEN, *(name for level in table.tokens() for name in level)]
    added = [AddedToken(name, normalized=False, special=True) for name in names]
    return int(tokenizer.add_tokens(added))


def token_map(tokenizer: PreTrainedTokenizerBase, table: SidTable) -> TokenMap:
    """Reads the codes' places from ``tokenizer``. ``ValueError`` names codes that it does not know."""
    names = table.tokens()
    vocabulary = tokenizer.get_vocab()
    missing = [name for level in names for name in level if name not in vocabulary]
    if missing or HISTORY_TOKEN not in vocabulary:
        shown = ", ".join(missing[:3]) or HISTORY_TOKEN
        raise ValueError(f"the tokenizer lacks {max(len(missing), 1)} SID tokens ({shown} ...): add_sid_tokens first")
    levels = tuple(torch.tensor([vocabulary[name] for name in level], dtype=torch.long) for level in names)
    item_tokens = np.stack([ids.numpy()[table.codes[:, level]] for level, ids in enumerate(levels)], axis=1)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ValueError("the tokenizer has neither a pad nor an eos token; set one of them")
    return TokenMap(levels, vocabulary[HISTORY_TOKEN], int(pad), item_tokens)


def resize_embeddings(model: Any, known: int, vocabulary: int, seed: int) -> None:
    """Grows the model's embeddings to at least ``vocabulary`` rows and initialises those from ``known`` on.

    ``known`` is the size of the tokenizer before the new tokens: checkpoints often carry spare rows behind it, which
    were never trained and are used first.

    New rows are drawn by ``start_rows`` around the mean of all old ones: they start inside the cloud that the model
    knows, equally likely as outputs, yet apart from one another so that gradients tell them apart.
    """
    if vocabulary <= known:
        return
    if vocabulary > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    start_rows(model, [(torch.arange(known), torch.arange(known, vocabulary))], seed)


@torch.no_grad()
def start_rows(model: Any, groups: Sequence[tuple[torch.Tensor, torch.Tensor]], seed: int) -> None:
    """Draws the rows of new tokens, in the input embeddings and in an output layer that has rows of its own.

    Each of ``groups`` holds places of known tokens and of new ones, which start at the mean of the known ones' rows
    plus ``NOISE`` times their standard deviation of seeded noise.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not tables[0]:
        tables.append(output.weight)
    for weight in tables:
        for known, new in groups:
            if len(new) == 0:
                continue
            rows = weight[known.to(weight.device)].float().cpu()
            # One row has no spread; the noise of a level of one code is that of the mean row's own numbers.
            spread = rows.std(0) if len(rows) > 1 else rows.std().expand(rows.shape[1])
            drawn = rows.mean(0) + NOISE * spread * torch.randn(len(new), rows.shape[1], generator=generator)
            weight[new.to(weight.device)] = drawn.to(weight.device, weight.dtype)
