"""A causal language model read along a small tree: prompts once, then branches that see their prompt and ancestors.

Two ways lead to the same hidden states. ``BlockTree`` walks the blocks of Llama's family itself. It knows that of a
prompt's last block only keys and values and the newest token's output are ever read; it drops padding before every
matrix product; and a branch attends to its prompt and to its own ancestors alone, not to a masked row of all branches.
``ModelTree`` gives any other architecture a 4-D mask and lets transformers keep the cache. ``grow_tree`` chooses.
``read_prefixes`` reads a tree that is known beforehand, with gradients. Left out: what is done with the hidden states
(``tree_search``, ``packed``).

Symbols: B contexts, P prompt tokens, W branches fed at once, H width of the model, N prompt tokens without padding.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from sidgym.agents.policy import NEGATIVE_INFINITY, Policy, additive_mask, causal_visibility, position_ids

BLOCK_FAMILY = ("llama", "qwen2", "qwen3")
"""model_type of transformers whose blocks ``BlockTree`` knows."""
MANY_WEIGHTS = 2**21
"""Attention weights of a layer that are computed again rather than held for the backward pass."""
SPAN = 512
"""Tokens at a time on a CPU."""
FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that depend on a token's position alone, not on how long the sequence is."""

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine (N, 1, D) of the rotary embedding (Llama's convention: halves are turned against each other)."""
BlockOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Hidden states behind a block, and the keys and values that it made."""


class TokenTree(Protocol):
    """Hidden states of a tree of tokens; the tree grows level by level."""

    def prompt(self) -> torch.Tensor:
        """Hidden states (B, 1, H) of the newest prompt tokens; called once, first."""

    def branches(self, tokens: torch.Tensor, path: torch.Tensor, last: bool) -> torch.Tensor:
        """Hidden states (B, W, H) of new tokens (B, W).

        ``path`` (B, W, n) says which branch of each of the n earlier calls is a token's ancestor. After ``last`` there
        are no further calls, so nothing is kept.
        """


def grow_tree(policy: Policy, ids: torch.Tensor, mask: torch.Tensor) -> TokenTree:
    """The tree of the fastest kind that ``policy`` allows, for prompts ``ids`` and ``mask`` (B, P), padded on
    one side or the other."""
    return (BlockTree if knows_blocks(policy) else ModelTree)(policy, ids, mask)


def knows_blocks(policy: Policy) -> bool:
    """Whether ``BlockTree`` knows this architecture; it does not drop out, so nothing is known that would have to."""
    if policy.training and policy.model.config.to_dict().get("attention_dropout"):
        return False
    return is_block_family(policy)


def is_block_family(policy: Policy) -> bool:
    """Whether the policy's blocks compute what those of Llama's family do, dropout aside."""
    config = policy.model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    known = config.model_type in BLOCK_FAMILY and rope in FIXED_ROPES and set(kinds) == {"full_attention"}
    return known and _walks_as_the_model(policy)


_SAME: dict[type, bool] = {}
"""By class of model: whether its own forward pass gives what ``BlockTree`` does."""


@torch.no_grad()
def _walks_as_the_model(policy: Policy) -> bool:
    """Compares the two once a class, on prompts of unequal length: a name says little about what a class computes."""
    kind = type(policy.model)
    if kind not in _SAME:
        first = torch.stack([policy.level_ids(level)[0] for level in range(policy.levels)])
        ids = torch.stack([first.repeat(2), first.roll(1).repeat(2)])
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[1, : policy.levels] = False
        training = policy.training
        policy.eval()
        with torch.autocast(policy.device.type, enabled=False):  # bfloat16 would round the two differently
            theirs = ModelTree(policy, ids, mask).prompt()
            ours = BlockTree(policy, ids, mask).prompt()
        policy.train(training)
        if not bool(torch.isfinite(theirs).all()):
            return True  # broken weights say nothing about a class, and whoever uses the numbers refuses them
        scale = float(theirs.abs().max())
        _SAME[kind] = float((ours - theirs).abs().max()) <= (1e-3 if ours.dtype == torch.float32 else 0.1) * scale
        if not _SAME[kind]:
            message = f"{kind.__name__} computes something else than its model_type says; the slow way is taken"
            warnings.warn(message, stacklevel=2)
    return _SAME[kind]


class BlockTree:
    """The blocks of Llama, Qwen2 and Qwen3, walked here; every weight is used through the model's own modules."""

    def __init__(self, policy: Policy, ids: torch.Tensor, mask: torch.Tensor):
        model: Any = policy.model.base_model
        self.model = model
        self.recomputes = policy.recomputes
        self.blocks = model.layers
        self.embed: Callable[[torch.Tensor], torch.Tensor] = policy.embed
        self.batch, self.width = ids.shape
        self.length = mask.sum(-1)
        rows, columns = mask.nonzero(as_tuple=True)
        self.tokens = ids[rows, columns]  # (N,) row by row
        self.place = position_ids(mask)[rows, columns]
        self.full = len(rows) == self.batch * self.width
        # Keys stand from slot 0 on and padding behind them, where causal attention does not see it.
        self.slot = rows * self.width + self.place
        self.end = self.length.cumsum(0) - 1  # (B,) where each prompt's newest token stands among the N
        self.hidden_keys = None
        if not self.full:
            seen = torch.arange(self.width, device=ids.device) < self.length[:, None]
            bias = torch.zeros(seen.shape, device=ids.device).masked_fill_(~seen, NEGATIVE_INFINITY)
            self.hidden_keys = bias[:, None, None]  # (B, 1, 1, P)
        self.keys: list[tuple[torch.Tensor, torch.Tensor]] = []  # by block: (B, heads, P, D) twice
        self.grown: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in self.blocks]  # (B, W, heads, D) twice

    def prompt(self) -> torch.Tensor:
        words, of = self.tokens.unique(return_inverse=True)
        embedded = self.embed(words)
        hidden = embedded[of]
        turn = self._rotation(hidden, self.place)
        for block in self.blocks:
            step = self._last_block if block is self.blocks[-1] else self._block
            # Until they are turned its projections hang on the token alone: one for all places where it stands.
            words_of = (embedded, of) if block is self.blocks[0] else None
            hidden, key, value = self._run(step, block, hidden, turn, words_of)
            self.keys.append((key, value))
        return self.model.norm(hidden)[:, None]

    def _run(self, step: Callable[..., BlockOutput], *inputs: Any) -> BlockOutput:
        """What a block gives. Where activations are to be computed again, only what comes in and goes out is held."""
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(step, *inputs, use_reentrant=False, preserve_rng_state=False)
        return step(*inputs)

    def _block(
        self,
        block: Any,
        hidden: torch.Tensor,
        turn: Rotation,
        words_of: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> BlockOutput:
        """All tokens of the prompts through one block: their states (N, H), keys and values (B, heads, P, D)."""
        if words_of is not None:
            query, key, value = (part[words_of[1]] for part in project(block, words_of[0]))
        else:
            parts = [project(block, hidden[rows]) for rows in _spans(hidden)]
            query, key, value = (torch.cat(part) for part in zip(*parts))
        query, key, value = (self._padded(part) for part in (turned(query, turn), turned(key, turn), value))
        seen = causal_read(query, key, value, block.self_attn.scaling)
        seen = seen.transpose(1, 2).flatten(2).flatten(0, 1)
        return finish(block, hidden, seen if self.full else seen[self.slot]), key, value

    def _last_block(self, block: Any, hidden: torch.Tensor, turn: Rotation, words_of: object) -> BlockOutput:
        """As ``_block``, but states (B, H): of a prompt's other tokens nothing is read but keys and values."""
        end = self.end
        normed = block.input_layernorm(hidden)
        key, value = turned(_heads(block, "k", normed), turn), _heads(block, "v", normed)
        key, value = self._padded(key), self._padded(value)
        query = turned(_heads(block, "q", normed[end]), (turn[0][end], turn[1][end]))
        seen = self._attend(block, query[:, None], key, value, [])
        return finish(block, hidden[end], seen.flatten(0, 1)), key, value

    def branches(self, tokens: torch.Tensor, path: torch.Tensor, last: bool) -> torch.Tensor:
        batch, width = tokens.shape
        hidden = self.embed(tokens.flatten())
        turn = self._rotation(hidden, (self.length[:, None] + path.shape[-1]).expand(batch, width).flatten())
        for block, (keys, values), grown in zip(self.blocks, self.keys, self.grown):
            hidden, key, value = self._run(self._branch, block, hidden, turn, path, keys, values, list(grown))
            if not last:
                grown.append((key, value))
        return self.model.norm(hidden).unflatten(0, (batch, width))

    def _branch(
        self,
        block: Any,
        hidden: torch.Tensor,
        turn: Rotation,
        path: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        grown: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> BlockOutput:
        """Branches through one block: their states (B * W, H), keys and values (B, W, heads, D)."""
        batch, width = path.shape[:2]
        rows = torch.arange(batch, device=path.device)[:, None]
        query, key, value = project(block, hidden)
        query, key = turned(query, turn), turned(key, turn)
        query, key, value = (part.unflatten(0, (batch, width)) for part in (query, key, value))
        own = [(k[rows, path[..., n]], v[rows, path[..., n]]) for n, (k, v) in enumerate(grown)]
        own.append((key, value))
        return finish(block, hidden, self._look(block, query, keys, values, own).flatten(0, 1)), key, value

    def _rotation(self, hidden: torch.Tensor, place: torch.Tensor) -> Rotation:
        """Cosine and sine (N, 1, D) of the rotary embedding at positions (N,)."""
        cos, sin = self.model.rotary_emb(hidden, place[None])
        return cos[0, :, None], sin[0, :, None]

    def _padded(self, part: torch.Tensor) -> torch.Tensor:
        """(N, heads, D) to (B, heads, P, D), padded on the right."""
        if not self.full:
            out = part.new_zeros(self.batch * self.width, *part.shape[1:])
            out[self.slot] = part
            part = out
        return part.unflatten(0, (self.batch, self.width)).transpose(1, 2).contiguous()

    def _look(
        self, block: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, own: Any
    ) -> torch.Tensor:
        """``_attend``, whose attention weights are computed again in the backward pass where they are many: held in
        every layer they would grow with G * P."""
        if torch.is_grad_enabled() and not self.recomputes and query[..., 0].numel() * keys.shape[2] > MANY_WEIGHTS:
            return checkpoint(self._attend, block, query, keys, values, own, use_reentrant=False)
        return self._attend(block, query, keys, values, own)

    def _attend(
        self,
        block: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        own: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """What branches (B, W, heads, D) read from their prompt and from their ``own`` tokens: (B, W, heads * D).

        ``own`` holds keys and values (B, W, key heads, D) of each ancestor, the token itself last.
        """
        batch, width, heads, size = query.shape
        groups = keys.shape[1]
        shape = (batch, groups, width, heads // groups)
        query = query.unflatten(2, (groups, -1)).transpose(1, 2) * block.self_attn.scaling  # (B, groups, W, rest, D)
        score = query.flatten(2, 3) @ keys.transpose(2, 3)  # (B, groups, W * rest, P)
        if self.hidden_keys is not None:
            score = score + self.hidden_keys.to(score.dtype)
        near = [(query * key.transpose(1, 2)[:, :, :, None]).sum(-1).flatten(2) for key, _ in own]
        weight = torch.softmax(torch.cat([score, *(n[..., None] for n in near)], dim=-1).float(), dim=-1)
        weight = weight.to(values.dtype)
        out = weight[..., : keys.shape[2]] @ values
        out = out.view(*shape, size)
        for n, (_, value) in enumerate(own, start=keys.shape[2]):
            out = out + weight[..., n].view(*shape, 1) * value.transpose(1, 2)[:, :, :, None]
        return out.transpose(1, 2).flatten(2)


def causal_read(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    dropout: float = 0.0,
    sees: torch.Tensor | None = None,
) -> torch.Tensor:
    """What prompt tokens (B, heads, P, D) read from those before them, or from those that each ``sees`` (B, P, P)."""
    heads, groups = query.shape[1], key.shape[1]
    if heads != groups and query.device.type != "cpu" and query.dtype == torch.float32:
        # In float32 CUDA's kernels know no shared heads and would make the whole square of weights instead.
        key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
    grouped = heads != key.shape[1]
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if sees is None else sees[:, None],
        dropout_p=dropout,
        is_causal=sees is None,
        scale=scale,
        enable_gqa=grouped,
    )


def project(block: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values (N, heads, D) of a block's input (N, H), the first two not yet turned."""
    normed = block.input_layernorm(hidden)
    return _heads(block, "q", normed), _heads(block, "k", normed), _heads(block, "v", normed)


def _heads(block: Any, name: str, normed: torch.Tensor) -> torch.Tensor:
    """Queries, keys or values (N, heads, D), normed where the block does so."""
    attention = block.self_attn
    part = getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return part if norm is None else norm(part)


def turned(part: torch.Tensor, turn: Rotation) -> torch.Tensor:
    """Queries or keys (N, heads, D) under the rotary embedding."""
    first, second = part.chunk(2, dim=-1)
    return part * turn[0] + torch.cat((-second, first), dim=-1) * turn[1]


def finish(block: Any, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """A block's output (N, H) from its input and what its attention read (N, heads * D)."""
    done = []
    for rows in _spans(hidden):
        middle = hidden[rows] + block.self_attn.o_proj(seen[rows])
        done.append(middle + block.mlp(block.post_attention_layernorm(middle)))
    return done[0] if len(done) == 1 else torch.cat(done)


def _spans(hidden: torch.Tensor) -> list[slice]:
    """Tokens (N, H) that go through a block together: on a CPU as many as stay in its cache between two operations."""
    size = SPAN if hidden.device.type == "cpu" and not torch.is_grad_enabled() else max(len(hidden), 1)
    return [slice(start, start + size) for start in range(0, max(len(hidden), 1), size)]


def read_prefixes(
    policy: Policy,
    ids: torch.Tensor,
    mask: torch.Tensor,
    tokens: Sequence[np.ndarray],
    groups: Sequence[np.ndarray],
    parents: Sequence[np.ndarray],
) -> list[torch.Tensor]:
    """Hidden states (U_l, H) of the distinct prefixes of l = 0 ... L - 1 codes, with gradient where that is on.

    Level 0 holds the empty prefixes of the B contexts with prompts ``ids`` and ``mask`` (B, P). Of each further level
    come the newest ``tokens`` (U_l,), the contexts ``groups`` (U_l,), ascending, and the numbers ``parents`` (U_l,) on
    the level before. Only for policies that ``knows_blocks`` is true of.
    """
    batch, device = len(ids), ids.device
    tree = BlockTree(policy, ids, mask)
    below = [torch.from_numpy(part).to(device) for part in tokens]
    # All tokens are read from the table at once: each reading costs a gradient as large as the table.
    words = torch.cat([tree.tokens, *below]).unique()
    table = policy.embed(words)
    tree.embed = lambda wanted: table[torch.searchsorted(words, wanted)]
    out = [tree.prompt()[:, 0]]
    path = np.zeros((batch, 0), dtype=np.int64)  # (U_l, l) each prefix's ancestors among those of its context
    place = np.zeros(batch, dtype=np.int64)  # (U_l,) its own place among them
    for level, (newest, group, parent) in enumerate(zip(tokens, groups, parents), start=1):
        size = np.bincount(group, minlength=batch)
        path = path[parent] if level == 1 else np.concatenate([path[parent], place[parent][:, None]], axis=1)
        place = np.arange(len(group)) - (np.cumsum(size) - size)[group]
        cells = (torch.from_numpy(group).to(device), torch.from_numpy(place).to(device))
        square = ids.new_full((batch, int(size.max(initial=0))), int(words[0]))
        paths = ids.new_zeros(*square.shape, level - 1)
        square[cells], paths[cells] = torch.from_numpy(newest).to(device), torch.from_numpy(path).to(device)
        if len(group):
            out.append(tree.branches(square, paths, last=level == len(tokens))[cells])
        else:
            out.append(out[0].new_zeros(0, out[0].shape[-1]))
    return out


class ModelTree:
    """Any causal LM that reads a 4-D mask; transformers keeps the cache, and masks keep branches apart."""

    def __init__(self, policy: Policy, ids: torch.Tensor, mask: torch.Tensor):
        self.policy, self.ids, self.mask = policy, ids, mask
        self.cache = DynamicCache()
        self.length = mask.sum(-1)
        self.starts: list[int] = []  # where each call's tokens begin in the cache

    def prompt(self) -> torch.Tensor:
        hidden = self.policy.hidden(
            **self.policy.reading(self.ids),
            attention_mask=additive_mask(causal_visibility(self.mask), self.policy.model),
            position_ids=position_ids(self.mask),
            past_key_values=self.cache,
            use_cache=True,
        )
        newest = (self.mask * torch.arange(self.mask.shape[1], device=self.ids.device)).argmax(-1)
        return hidden[torch.arange(len(hidden), device=self.ids.device), newest][:, None]

    def branches(self, tokens: torch.Tensor, path: torch.Tensor, last: bool) -> torch.Tensor:
        batch, width = tokens.shape
        past = self.cache.get_seq_length()
        self.starts.append(past)
        own = torch.arange(width, device=tokens.device).expand(batch, width)[..., None]
        slots = torch.cat([path, own], dim=-1) + torch.tensor(self.starts, device=tokens.device)
        visible = torch.zeros(batch, width, past + width, dtype=torch.bool, device=tokens.device)
        visible[:, :, : self.mask.shape[1]] = self.mask[:, None]
        visible.scatter_(2, slots, True)
        return self.policy.hidden(
            input_ids=tokens,
            attention_mask=additive_mask(visible, self.policy.model),
            position_ids=(self.length[:, None] + path.shape[-1]).expand(batch, width),
            past_key_values=self.cache,
            use_cache=True,
        )
