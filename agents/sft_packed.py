"""The loss of whole examples without padding: all tokens of a batch end to end, and attention example by example.

Blocks of Llama's family are walked here: every matrix product sees nothing but real tokens, and attention sees examples
of like length side by side under plain causal attention. Any other architecture gets rows of examples under a
block-diagonal causal mask, with positions that restart. Where items are merged both ways mask branches (``branches``),
which share their trunk. Logits exist where something is supervised, and where the
target is a SID they may be those of the SID tokens alone. Left out: what examples are (``tasks``) and steps (``sft``).

Symbols: R examples, N tokens of all of them, H width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from sidgym.agents.branches import sees
from sidgym.agents.packing import fill_rows
from sidgym.agents.policy import Policy, additive_mask, position_limit
from sidgym.agents.templates import SID_LOSS, SILENT, TokenRows
from sidgym.agents.tree_cache import causal_read, finish, is_block_family, project, turned

GROWTH = 1.25
"""Examples attend side by side where the longest is at most this much longer than the shortest."""
MOST_LOGITS = 2**26
"""Logits that are held at once; what is beyond is computed again in the backward pass."""


def packed_loss(policy: Policy, rows: TokenRows, normalise: str = "vocab") -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the supervised tokens of examples, and how many these were.

    ``normalise="sid"`` takes the softmax over the SID tokens where the target is one; texts always see the whole
    vocabulary.
    """
    where = np.flatnonzero(rows.loss != SILENT)
    if not len(where):
        raise ValueError("no token of these examples is supervised: a task must have an answer")
    hidden = packed_hidden(policy, rows, rows.predictors(where))
    targets = torch.from_numpy(rows.tokens[where]).to(policy.device)
    if normalise == "vocab":
        return _nll(lambda part: policy.logits(part), hidden, targets, _vocabulary(policy)), len(where)
    if normalise != "sid":
        raise ValueError(f"unknown sft.normalise {normalise!r}; known: vocab, sid")
    coded = torch.from_numpy(rows.loss[where] == SID_LOSS).to(policy.device)
    ids, _ = torch.cat([policy.level_ids(level) for level in range(policy.levels)]).sort()
    codes = torch.searchsorted(ids, targets[coded])
    sids = _nll(lambda part: policy.logits(part, ids), hidden[coded], codes, len(ids))
    texts = _nll(lambda part: policy.logits(part), hidden[~coded], targets[~coded], _vocabulary(policy))
    return sids + texts, len(where)


def packed_hidden(policy: Policy, rows: TokenRows, wanted: np.ndarray) -> torch.Tensor:
    """Last hidden states (n, H) of the tokens at ``wanted`` (n,), each example read by itself."""
    rows, wanted = rows.seen_by(wanted)
    places = rows.places
    longest = int(places.max()) + 1
    most = position_limit(policy.model)
    if most is not None and longest > most:
        raise ValueError(
            f"an example has {longest} tokens, this model reads {most}: lower sft.max_text_tokens or data.history"
        )
    return (_walked if is_block_family(policy) else _in_rows)(policy, rows, places, wanted)


def _walked(policy: Policy, rows: TokenRows, place: np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """``packed_hidden`` through the blocks of Llama's family."""
    model: Any = policy.model.base_model
    device = policy.device
    dropout = model.config.attention_dropout if policy.training else 0.0
    need = torch.from_numpy(wanted).to(device)
    hidden = policy.embed(torch.from_numpy(rows.tokens).to(device))
    cos, sin = model.rotary_emb(hidden, torch.from_numpy(place)[None].to(device))
    turn = (cos[0, :, None], sin[0, :, None])
    squares, back = _squares(rows, device)
    branch = None if rows.branch is None else torch.from_numpy(rows.branch).to(device)
    masks = [None if branch is None else sees(branch[square]) for square in squares]
    for block in model.layers:
        query, key, value = project(block, hidden)
        query, key = turned(query, turn), turned(key, turn)
        read = []
        for square, mask in zip(squares, masks):
            q, k, v = (part[square].transpose(1, 2) for part in (query, key, value))
            read.append(causal_read(q, k, v, block.self_attn.scaling, dropout, mask).transpose(1, 2).flatten(0, 1))
        seen = torch.cat(read).flatten(1)
        # Of the last block nothing is read but what predicts something.
        last = block is model.layers[-1]
        hidden = finish(block, hidden[need] if last else hidden, seen[back[need] if last else back])
    return model.norm(hidden)


def _squares(rows: TokenRows, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Examples of like length side by side: token numbers (B, W) of each group, and where each of the N tokens stands
    in all of them together. Padding is any token: it stands on the right, where causal attention does not see it."""
    lengths = rows.lengths
    kind = np.ceil(np.log(np.maximum(lengths, 1)) / math.log(GROWTH)).astype(np.int64)
    squares, back, done = [], np.zeros(len(rows.tokens), dtype=np.int64), 0
    for number in np.unique(kind[lengths > 0]):
        chosen = np.flatnonzero((kind == number) & (lengths > 0))
        width = int(lengths[chosen].max())
        column = np.arange(width)
        inside = column < lengths[chosen, None]
        square = np.where(inside, rows.offsets[:-1][chosen, None] + column, 0)
        back[square[inside]] = done + np.flatnonzero(inside)
        squares.append(torch.from_numpy(square).to(device))
        done += square.size
    return squares, torch.from_numpy(back).to(device)


def _in_rows(policy: Policy, rows: TokenRows, place: np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """``packed_hidden`` through transformers: several examples in a row, none of which sees another."""
    lengths = rows.lengths
    filled = fill_rows(lengths)
    shape = (filled.count, filled.width)
    owner = np.repeat(np.arange(len(rows)), lengths)
    rank = np.arange(len(rows.tokens)) - np.repeat(rows.offsets[:-1], lengths)
    cell = filled.row[owner] * filled.width + filled.start[owner] + rank
    ids, position, of = np.full(shape, policy.tokens.pad), np.zeros(shape, dtype=np.int64), np.full(shape, -1)
    for array, values in ((ids, rows.tokens), (position, place), (of, owner)):
        array.reshape(-1)[cell] = values
    group = torch.from_numpy(of).to(policy.device)
    visible = (group[:, :, None] == group[:, None]).tril()  # padding sees padding: no row is empty
    if rows.branch is not None:
        branch = np.zeros(shape, dtype=np.int64)
        branch.reshape(-1)[cell] = rows.branch
        visible &= sees(torch.from_numpy(branch).to(policy.device))
    hidden = policy.hidden(
        **policy.reading(torch.from_numpy(ids).to(policy.device)),
        attention_mask=additive_mask(visible, policy.model),
        position_ids=torch.from_numpy(position).to(policy.device),
        use_cache=False,
    )
    return hidden.flatten(0, 1)[torch.from_numpy(cell[wanted]).to(policy.device)]


def _vocabulary(policy: Policy) -> int:
    return int(policy.model.get_output_embeddings().weight.shape[0])


def _nll(
    logits: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor, width: int
) -> torch.Tensor:
    """Summed cross-entropy of states (n, H), with at most ``MOST_LOGITS`` logits at a time."""

    def part_of(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits(states), wanted, reduction="sum")

    size = max(MOST_LOGITS // width, 1)
    if len(targets) <= size:
        return part_of(hidden, targets)
    parts = zip(hidden.split(size), targets.split(size))
    again = [checkpoint(part_of, *part, use_reentrant=False) for part in parts]
    return torch.stack(again).sum()


def token_parts(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Examples of ``lengths`` (R,), in their order, in parts of at most ``tokens`` tokens; a longer one is a part of
    its own. With 0 one part."""
    if tokens <= 0 or not len(lengths):
        return [np.arange(len(lengths))]
    parts, begin, ends = [], 0, np.cumsum(lengths)
    while begin < len(lengths):
        before = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, before + tokens, side="right")), begin + 1)
        parts.append(np.arange(begin, end))
        begin = end
    return parts
