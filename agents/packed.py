"""Log-probabilities of whole groups, each prompt read once and the candidates behind it as a tree of shared prefixes.

The cost grows with P + (distinct prefixes that several SIDs share) <= P + G * (L - 1) tokens instead of G * (P + L).
The same function serves the learner (with gradient), the reference policy and the evaluation. Left out: losses, and
where tokens stand (``packing``).

Two ways lead to the same hidden states. Apart: prompts first, under plain causal attention without any mask, and then
the trees over their keys and values. In rows: prompts and trees in one pass, several short groups in a row, under a
block mask. ``packing.rows_pay`` says which costs less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from sidgym.agents.packing import PrefixTree, Rows, fill_rows, rows_pay
from sidgym.agents.policy import NEGATIVE_INFINITY, Contexts, Policy, additive_mask, prompt_arrays
from sidgym.agents.tree_cache import knows_blocks, read_prefixes


@dataclass(frozen=True)
class PathScores:
    """What the policy says of given SIDs."""

    logp: torch.Tensor  # (B, G, L) log-probability of each code given the ones before it
    entropy: torch.Tensor  # (B, G, L) entropy in nats of the distribution that each code was drawn from


@dataclass(frozen=True)
class Paths:
    """Candidates (B, G, L) of B groups and the tree of their prefixes."""

    codes: torch.Tensor  # (B, G, L) on the policy's device; vocabulary ids where free
    nodes: torch.Tensor  # (B, G, L) trie node before each code, or 0 where free; -1 where nothing is to be read
    tree: PrefixTree
    tokens: tuple[np.ndarray, ...]  # L arrays (U_l,): token of each prefix's last code; none on level 0

    @classmethod
    def of(cls, policy: Policy, codes: torch.Tensor, normalisations: Sequence[str]) -> "Paths":
        """Paths of ``codes`` (B, G, L). A code of -1 ends a path, and so does one off the trie.

        Where the trie alone normalises and a single SID is left, the codes to come are certain: their log-probability
        is 0 whatever the policy says, and nothing is read for it.
        """
        levels = codes.shape[-1]
        codes = codes.to(policy.device)
        free = tuple(normalisations) == ("free",)
        if free:
            absent = (codes < 0).long()
            nodes = -((absent.cumsum(-1) - absent) > 0).long()
        else:
            nodes = policy.trie.path(codes)[..., :-1].clone()
            nodes[..., 1:].masked_fill_(codes[..., 1:] < 0, -1)  # nothing is asked of where a path ends
        if tuple(normalisations) == ("trie",):
            nodes = nodes.masked_fill(policy.trie.reaches_one(nodes), -1)
        host = codes.cpu().numpy()
        tree = PrefixTree.build(host, (nodes >= 0).cpu().numpy())
        last = [host.reshape(-1, levels)[tree.first[level], level - 1] for level in range(1, levels)]
        read = last if free else [policy.tokens.levels[level].numpy()[codes] for level, codes in enumerate(last)]
        return cls(codes, nodes, tree, (np.zeros(0, dtype=np.int64), *read))


def packed_logp(
    policy: Policy,
    contexts: Contexts | np.ndarray,
    codes: torch.Tensor,
    normalise: str = "trie",
    entropy_gradient: bool = False,
) -> PathScores:
    """Scores of candidates ``codes`` (B, G, L) behind contexts, or item histories (B, T, left-padded with -1)."""
    return packed_scores(policy, contexts, codes, (normalise,), entropy_gradient)[0]


def packed_scores(
    policy: Policy,
    contexts: Contexts | np.ndarray,
    codes: torch.Tensor,
    normalisations: Sequence[str],
    entropy_gradient: bool = False,
) -> list[PathScores]:
    """``packed_logp`` under each of several normalisations, from one pass.

    ``"trie"`` and ``"vocab"`` as in ``Policy.level_logp``; codes that leave the trie (or are -1) get log-probability 0
    and entropy 0 from there on: mask them by validity. ``"free"``, alone, takes vocabulary ids instead of codes, under
    the softmax over the whole vocabulary. Entropies carry no gradient unless ``entropy_gradient``.
    """
    paths = Paths.of(policy, codes, normalisations)
    hidden = hidden_states(policy, contexts, paths)
    free = tuple(normalisations) == ("free",)
    weights = (None,) * len(hidden) if free else policy.level_weights()
    out = []
    for normalise in normalisations:
        scores = [
            _score(policy, hidden[level], paths, level, normalise, weights, entropy_gradient)
            for level in range(len(hidden))
        ]
        out.append(PathScores(torch.stack([s[0] for s in scores], -1), torch.stack([s[1] for s in scores], -1)))
    return out


def hidden_states(policy: Policy, contexts: Contexts | np.ndarray, paths: Paths) -> list[torch.Tensor]:
    """Last hidden state (U_l, H) of every distinct prefix, for each of the L levels."""
    ids, mask = prompt_arrays(policy, contexts)
    if knows_blocks(policy):
        tree, device = paths.tree, policy.device
        parents = [tree.of[level - 1][tree.first[level]] for level in range(1, len(paths.tokens))]
        return read_prefixes(policy, _to(ids, device), _to(mask, device), paths.tokens[1:], tree.group[1:], parents)
    lengths, nodes = mask.sum(axis=1), paths.tree.nodes
    rows = fill_rows(lengths + nodes)
    # With a cache between two passes no activations can be computed again.
    recomputes = policy.recomputes and torch.is_grad_enabled()
    if recomputes or rows_pay(rows, lengths, nodes, policy.model.config.get_text_config().hidden_size):
        return _in_rows(policy, ids[mask], lengths, rows, paths)
    return _apart(policy, ids[mask], lengths, paths)


def _apart(policy: Policy, prompts: np.ndarray, lengths: np.ndarray, paths: Paths) -> list[torch.Tensor]:
    """Prompts (all their tokens, one after another), then trees over their keys and values."""
    tree, device, pad = paths.tree, policy.device, policy.tokens.pad
    batch, prompt, width = len(lengths), int(lengths.max()), int(tree.nodes.max())
    own = np.arange(prompt) < lengths[:, None]
    ids = np.full((batch, prompt + width), pad)
    ids[:, :prompt][own] = prompts
    positions = np.broadcast_to(np.arange(prompt + width), ids.shape).copy()
    visible = torch.zeros(batch, width, prompt + width, dtype=torch.bool, device=device)
    visible[:, :, :prompt] = _to(own, device)[:, None]
    visible[:, :, prompt:] = torch.eye(width, dtype=torch.bool, device=device)  # padding sees itself
    for level in range(1, len(paths.tokens)):
        group, place = tree.group[level], prompt + tree.ancestors[level]
        ids[group, place[:, -1]], positions[group, place[:, -1]] = paths.tokens[level], lengths[group] + level - 1
        visible[_to(group, device)[:, None], _to(place[:, -1:] - prompt, device), _to(place, device)] = True
    # Read at once: each reading costs a gradient as large as the table.
    inputs, where = policy.embed(_to(ids, device)), _to(positions, device)
    cache = DynamicCache()
    # Padding stands on the right, where causal attention cannot see it: no mask is needed, nor made.
    states = policy.hidden(
        inputs_embeds=inputs[:, :prompt], position_ids=where[:, :prompt], past_key_values=cache, use_cache=True
    )
    out = [states[torch.arange(batch, device=device), _to(lengths - 1, device)]]
    if not width:
        return out + [states.new_zeros(0, states.shape[-1]) for _ in paths.tokens[1:]]
    states = policy.hidden(
        inputs_embeds=inputs[:, prompt:],
        attention_mask=additive_mask(visible, policy.model),
        position_ids=where[:, prompt:],
        past_key_values=cache,
        use_cache=True,
    )
    for group, place in zip(tree.group[1:], tree.ancestors[1:]):
        out.append(states[_to(group, device), _to(place[:, -1], device)])
    return out


def _in_rows(policy: Policy, prompts: np.ndarray, lengths: np.ndarray, rows: Rows, paths: Paths) -> list[torch.Tensor]:
    """Prompts and trees in one pass, several groups in a row; no group sees another."""
    tree, device = paths.tree, policy.device
    shape = (rows.count, rows.width)
    group = np.repeat(np.arange(len(lengths)), lengths)
    rank = np.arange(len(prompts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids, positions = np.full(shape, policy.tokens.pad), np.zeros(shape, dtype=np.int64)
    owner, is_prompt = np.full(shape, -1), np.zeros(shape, dtype=bool)
    # A cell is (row, column); level by level from here on, the prompts first.
    cells = [(rows.row[group], rows.start[group] + rank)]
    behind = rows.start + lengths
    cells += [(rows.row[g], behind[g] + place[:, -1]) for g, place in zip(tree.group[1:], tree.ancestors[1:])]
    owners = [group, *tree.group[1:]]
    places = [rank, *(lengths[g] + level for level, g in enumerate(tree.group[1:]))]
    for cell, who, position, tokens in zip(cells, owners, places, (prompts, *paths.tokens[1:])):
        ids[cell], positions[cell], owner[cell] = tokens, position, who
    is_prompt[cells[0]] = True
    of, column = _to(owner, device), torch.arange(rows.width, device=device)
    visible = (of[:, :, None] == of[:, None]) & _to(is_prompt, device)[:, None] & (column <= column[:, None])
    visible |= torch.eye(rows.width, dtype=torch.bool, device=device)  # padding sees itself
    for level in range(1, len(cells)):
        row, here = (_to(part[:, None], device) for part in cells[level])
        seen = behind[tree.group[level]][:, None] + tree.ancestors[level]
        visible[row, here, _to(seen, device)] = True
    states = policy.hidden(
        **policy.reading(_to(ids, device)),
        attention_mask=additive_mask(visible, policy.model),
        position_ids=_to(positions, device),
        use_cache=False,
    )
    cells[0] = (rows.row, behind - 1)
    return [states[_to(row, device), _to(here, device)] for row, here in cells]


def _to(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)


def _score(
    policy: Policy,
    hidden: torch.Tensor,
    paths: Paths,
    level: int,
    normalise: str,
    weights: Sequence[torch.Tensor | None],
    entropy_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy (B, G) of one level's codes from the states (U_l, H) before them.

    Candidates with a common prefix read the same distribution, which is computed once.
    """
    codes, before = paths.codes[..., level], paths.nodes[..., level]
    if not len(hidden):
        return torch.zeros(codes.shape, device=codes.device), torch.zeros(codes.shape, device=codes.device)
    if normalise == "free":
        table = torch.log_softmax(policy.logits(hidden), dim=-1)
    else:
        nodes = before.flatten()[_to(paths.tree.first[level], codes.device)]
        table = policy.level_logp(hidden, nodes, level, normalise, weights=weights[level])
    which = _to(paths.tree.of[level], codes.device).view(codes.shape)
    logp = table[which, codes.clamp_min(0)]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(table.exp() * table.masked_fill(table == NEGATIVE_INFINITY, 0.0)).sum(-1)[which]
        inside = (before >= 0) & (codes >= 0) & (logp > NEGATIVE_INFINITY)
    return torch.where(inside, logp, 0.0), torch.where(inside, entropy, 0.0)
