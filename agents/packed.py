"""Log-probabilities of whole groups in one pass: the prompt once, its G candidates behind it under a block mask.

The cost grows with P + G * (L - 1) tokens instead of G * (P + L). The same function serves the learner (with gradient),
the reference policy and the evaluation. Left out: losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sidgym.agents.policy import Policy, additive_mask, causal_visibility, position_ids, prompt_tensors


@dataclass(frozen=True)
class PathScores:
    """What the policy says of given SIDs."""

    logp: torch.Tensor  # (B, G, L) log-probability of each code given the ones before it
    entropy: torch.Tensor  # (B, G, L) entropy in nats of the distribution that each code was drawn from


def packed_logp(policy: Policy, history: np.ndarray, codes: torch.Tensor, normalise: str = "trie") -> PathScores:
    """Scores of candidates ``codes`` (B, G, L) after item histories (B, T, left-padded with -1)."""
    return packed_scores(policy, history, codes, (normalise,))[0]


def packed_scores(
    policy: Policy, history: np.ndarray, codes: torch.Tensor, normalisations: Sequence[str]
) -> list[PathScores]:
    """``packed_logp`` under each of several normalisations, from one pass.

    ``"trie"`` and ``"vocab"`` as in ``Policy.level_logp``; codes that leave the trie (or are -1) get log-probability 0
    and entropy 0 from there on: mask them by validity. ``"free"``, alone, takes vocabulary ids instead of codes, under
    the softmax over the whole vocabulary.
    """
    batch, group, levels = codes.shape
    ids, mask = prompt_tensors(policy, history)
    codes = codes.to(policy.device)
    free = tuple(normalisations) == ("free",)
    nodes = torch.zeros_like(codes) if free else policy.trie.path(codes)[..., :-1]  # (B, G, L) node before each code
    fed = levels - 1
    # The last code of a SID is never read, so a SID of one level feeds nothing behind the prompt.
    read = [codes[..., lv] if free else policy.level_ids(lv)[codes[..., lv].clamp_min(0)] for lv in range(fed)]
    tokens = torch.stack(read, dim=-1) if read else codes.new_zeros(batch, group, 0)
    length = mask.sum(-1)
    positions = (length[:, None, None] + torch.arange(fed, device=ids.device)).expand(batch, group, fed)
    hidden = policy.hidden(
        input_ids=torch.cat([ids, tokens.reshape(batch, group * fed)], dim=1),
        attention_mask=additive_mask(_block_visibility(mask, group, fed), policy.model),
        position_ids=torch.cat([position_ids(mask), positions.reshape(batch, group * fed)], dim=1),
        use_cache=False,
    )
    prompt = ids.shape[1]
    first = hidden[:, prompt - 1 : prompt].expand(batch, group, -1)
    rest = hidden[:, prompt:].reshape(batch, group, fed, hidden.shape[-1])
    by_level = [first, *(rest[:, :, level] for level in range(fed))]
    out = []
    for normalise in normalisations:
        scores = [_score(policy, by_level[lv], nodes[..., lv], codes, lv, normalise) for lv in range(levels)]
        out.append(PathScores(torch.stack([s[0] for s in scores], -1), torch.stack([s[1] for s in scores], -1)))
    return out


def _block_visibility(mask: torch.Tensor, group: int, fed: int) -> torch.Tensor:
    """Boolean (B, S, S): the prompt is causal; each candidate sees the prompt and its own earlier codes."""
    batch, prompt = mask.shape
    total = prompt + group * fed
    visible = torch.zeros(batch, total, total, dtype=torch.bool, device=mask.device)
    visible[:, :prompt, :prompt] = causal_visibility(mask)
    visible[:, prompt:, :prompt] = mask[:, None]
    if fed:
        own = torch.ones(fed, fed, dtype=torch.bool, device=mask.device).tril()
        visible[:, prompt:, prompt:] = torch.block_diag(*[own] * group)
    return visible


def _score(
    policy: Policy, hidden: torch.Tensor, nodes: torch.Tensor, codes: torch.Tensor, level: int, normalise: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy (B, G) of one level's codes."""
    if normalise == "free":
        return _score_free(policy, hidden, codes, level)
    # All candidates share the first level's distribution: it is computed once and read G times.
    shared = level == 0
    table = policy.level_logp(hidden[:, :1] if shared else hidden, nodes[:, :1] if shared else nodes, level, normalise)
    chosen = codes[..., level].clamp_min(0)
    logp = table.expand(-1, codes.shape[1], -1).gather(-1, chosen[..., None])[..., 0]
    finite = table.masked_fill(table == float("-inf"), 0.0)
    entropy = -(finite.exp() * finite).masked_fill(table == float("-inf"), 0.0).sum(-1)
    inside = (nodes >= 0) & (codes[..., level] >= 0) & (logp > float("-inf"))
    return torch.where(inside, logp, 0.0), torch.where(inside, entropy.expand_as(logp), 0.0)


def _score_free(
    policy: Policy, hidden: torch.Tensor, tokens: torch.Tensor, level: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy (B, G) of vocabulary ids."""
    table = torch.log_softmax(policy.logits(hidden[:, :1] if level == 0 else hidden), dim=-1)
    logp = table.expand(-1, tokens.shape[1], -1).gather(-1, tokens[..., level, None])[..., 0]
    return logp, -(table.exp() * table).sum(-1).expand_as(logp)
