"""The exact expectation of a reward over the top of the trie (``rl.mode = "cut"``): candidates are nodes, not SIDs.

A cut is a set of nodes such that every SID lies below exactly one of them, so that their probabilities add up to one:

    levels = 1          the first codes, all of them
    levels = l          below the W = ``rl.group_size`` most probable nodes of each level before l, their children
                        instead; what was not among the W stays as it is, with all that lies below it

These are the nodes whose probabilities a beam search of width W computes anyhow, the ones it throws away included. A
node is worth the mean reward ``v(n)`` of the SIDs below it, so that ``J = sum_n pi(n) v(n)`` is the expected reward of
a policy that follows pi to the cut and draws evenly from there on; at ``levels = L`` with W as wide as the trie it is
the expected reward itself. Its gradient is ``sum_n pi(n) v(n) grad log pi(n)``: nothing is drawn, so there is no
variance, no baseline makes a difference (``sum_n pi(n) grad log pi(n) = 0``), and no group is without signal because a
beam missed the target. For ``prefix`` the expected reward is ``sum_l pi(t_1 .. t_l)``, the probabilities of the
target's own prefixes; what the cut leaves out of it, even draws stand for.

A node's weight in the mean over its group is ``M pi_old(n)`` (M nodes), as in every other mode that is weighed
(``importance``): with the ratio of whole sequences and without a clip (``rloo``) the gradient is exact for older
weights, too. That holds with ``rl.advantage = "group_centred"``, and with ``"batch_standardised"`` up to one factor for
all contexts of a rollout; ``"group_standardised"`` weighs each context by its own spread instead.

Left out: rewards that compare the candidates of a group, which mean nothing for nodes; they are refused.

Symbols: B contexts, M nodes of a cut (the same for every context, some not valid), L levels, S SIDs.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sidgym.agents.audit import is_constant
from sidgym.agents.candidates import Candidates
from sidgym.agents.config import RlConfig
from sidgym.agents.engine import Engine, TorchEngine
from sidgym.agents.policy import NEGATIVE_INFINITY, Policy
from sidgym.agents.tree_search import Request, TreeSearch
from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.rewards import RewardSum, Scores, claims
from sidgym.sid.trie import Trie

CUT = "cut"


@dataclass(frozen=True)
class Cut:
    """The nodes of B cuts."""

    codes: torch.Tensor  # (B, M, L), -1 behind the node's own codes
    logp: torch.Tensor  # (B, M, L) of each code, 0 behind them
    nodes: torch.Tensor  # (B, M) nodes of the trie; -1 where not valid
    valid: torch.Tensor  # (B, M) bool

    @property
    def chance(self) -> torch.Tensor:
        """Probability (B, M) float64 of each node, 0 where not valid; the rows add up to one."""
        return self.logp.double().sum(-1).exp().masked_fill(~self.valid, 0.0)


def slots(trie: Trie, width: int, levels: int) -> list[int]:
    """How many nodes of each level a cut can hold, those that it goes on below included: the same for every context."""
    out = []
    for level in range(levels):
        children = torch.bincount(trie.parents(level) - trie.bounds[level])
        out.append(int(children.sort(descending=True).values[:width].sum()))
    return out


class CutSearch(TreeSearch):
    """A beam search that keeps what it looked at."""

    def __init__(self, policy: Policy, episodes: Episodes, width: int, levels: int):
        super().__init__(policy, episodes, Request(width, "beam", policy.trie, "trie", 0, 1, 1))
        self.depth = levels
        self.seen: list[tuple[torch.Tensor, ...]] = []  # of each level, what ``Cut`` holds
        self.slots = slots(policy.trie, width, levels)

    def cut(self) -> Cut:
        """The cut below the prompts."""
        self._extend(self._step(self.tree.prompt(), self.nodes, 0), 0)
        for level in range(1, self.depth):
            self._extend(self._feed(level), level)
        return Cut(*(torch.cat(parts, dim=1) for parts in zip(*self.seen)))

    def _choose(self, step: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Remembers the children that exist, most probable first, and goes on below the first ones."""
        total = (self.score[..., None] + step).flatten(1)
        score, flat = total.topk(min(self.slots[level], total.shape[1]), dim=1)
        branch, code = flat // step.shape[-1], flat % step.shape[-1]
        further = min(self.group, score.shape[1]) if level + 1 < self.depth else 0
        valid = score > NEGATIVE_INFINITY
        nodes = torch.where(valid, self.trie.step(self.nodes[self.rows, branch], code, level), -1)
        own = step.flatten(1).gather(1, flat)
        codes = torch.cat([self.choices[self.rows, branch], code[..., None]], dim=-1).masked_fill(~valid[..., None], -1)
        logp = torch.cat([self.logp[self.rows, branch], own[..., None]], dim=-1).masked_fill(~valid[..., None], 0.0)
        behind = (0, self.policy.levels - level - 1)
        pad = torch.nn.functional.pad
        self.seen.append((
            pad(codes, behind, value=-1)[:, further:], pad(logp, behind)[:, further:], nodes[:, further:],
            valid[:, further:],
        ))  # fmt: skip
        further = further or 1
        return branch[:, :further], code[:, :further], score[:, :further]


@torch.no_grad()
def cut_of(policy: Policy, episodes: Episodes, width: int, levels: int) -> Cut:
    """The cut of each context; ``ValueError`` for levels that the trie does not have."""
    if not 1 <= levels <= policy.levels:
        raise ValueError(f"rl.cut_levels: expected 1 to {policy.levels}, the levels of the SIDs, got {levels}")
    was_training = policy.training
    policy.eval()
    cut = CutSearch(policy, episodes.trimmed(), width, levels).cut()
    policy.train(was_training)
    return cut


def sid_scores(episodes: Episodes, reward: RewardSum, trie: Trie) -> Scores:
    """What every SID of the catalogue earns, (B, S) in the order of leaves. ``ValueError`` for a reward that compares
    the candidates of a group."""
    comparing = [
        name for name, term in reward.rewards.items()
        if claims(term, "needs_group") or getattr(term, "best_of_group", False) or getattr(term, "anchor", False)
    ]  # fmt: skip
    if comparing:
        raise ValueError(
            f"reward {comparing[0]!r} compares the candidates of a group; with rl.mode = {CUT!r} candidates are nodes "
            "of the trie. Take rewards of single items: 'rule', 'prefix', 'semantic', or 'gated' with anchor = false"
        )
    leaves = torch.arange(trie.num_leaves, device=trie.device)
    codes, items = trie.codes_of(leaves).cpu().numpy(), trie.items_of(leaves).cpu().numpy()
    shape = (len(episodes), len(codes))
    whole = Rollouts(
        codes=np.broadcast_to(codes, (shape[0], *codes.shape)),
        valid=np.ones(shape, dtype=bool),
        items=np.broadcast_to(items, (shape[0], *items.shape)),
        logp=np.zeros((*shape, codes.shape[1]), dtype=np.float32),
        mode="given",
        normalise="trie",
    )
    return reward.score(episodes, whole)


def node_values(values: np.ndarray, nodes: np.ndarray, trie: Trie) -> np.ndarray:
    """Mean of ``values`` (B, S) over the SIDs below each of ``nodes`` (B, M), 0 for node -1. (B, M) float64."""
    ancestor = torch.arange(trie.bounds[-2], trie.bounds[-1], device=trie.device)  # of every leaf, from the leaf up
    first, end = np.zeros(trie.num_nodes, dtype=np.int64), np.zeros(trie.num_nodes, dtype=np.int64)
    for level in range(trie.depth, 0, -1):
        here = ancestor.cpu().numpy()  # ascending: what lies below a node stands together
        own = np.arange(trie.bounds[level], trie.bounds[level + 1])
        first[own], end[own] = np.searchsorted(here, own, "left"), np.searchsorted(here, own, "right")
        ancestor = trie.parents(level - 1)[ancestor - trie.bounds[level]]
    total = np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1, dtype=np.float64)], axis=1)
    low, high = first[np.maximum(nodes, 0)], end[np.maximum(nodes, 0)]
    summed = np.take_along_axis(total, high, axis=1) - np.take_along_axis(total, low, axis=1)
    return np.where(nodes >= 0, summed / np.maximum(high - low, 1), 0.0)


def answer_cut(episodes: Episodes, engine: Engine, reward: RewardSum, config: RlConfig, seed: int) -> Candidates:
    """The nodes of each context's cut, worth what lies below them and weighed by their probability.

    Raises ``ValueError`` for another engine than ``torch``, environments other than ``next_item``, a policy normalised
    over the vocabulary, and what ``sid_scores`` refuses.
    """
    check_cut(config)
    if not isinstance(engine, TorchEngine):
        raise ValueError(f"rl.mode = {CUT!r} reads the policy's distribution over nodes; it needs rl.engine = 'torch'")
    policy = engine.policy
    cut = cut_of(policy, episodes, config.group_size, config.cut_levels)
    scores = sid_scores(episodes, reward, policy.trie)
    nodes, valid, chance = (part.cpu().numpy() for part in (cut.nodes, cut.valid, cut.chance))
    total = node_values(scores.total, nodes, policy.trie)
    terms = {name: node_values(part, nodes, policy.trie) for name, part in scores.parts.items()}
    target = policy.table.codes[np.maximum(episodes.target, 0)][:, None]
    codes = cut.codes.cpu().numpy()
    holds = ((codes == target) | (codes < 0)).all(-1) & valid & (episodes.target >= 0)[:, None]
    figures = {
        "reward": (chance * total).sum(1),
        "audit/all_zero": ((total == 0) | ~valid).all(1).astype(np.float64),
        "audit/all_equal": is_constant(total, valid).astype(np.float64),
        "rollout/hit": (holds & (codes >= 0).all(-1)).any(1).astype(np.float64),
        "rollout/target_mass": (chance * holds).sum(1),
        "rollout/unique_items": valid.sum(1).astype(np.float64),
        "rollout/valid": valid.mean(1),
        **{f"rewards/{name}/mean": (chance * part).sum(1) for name, part in terms.items()},
    }
    return Candidates(
        episodes,
        codes,
        valid,
        cut.logp.float().cpu().numpy(),
        total.astype(np.float32),
        {name: part.astype(np.float32) for name, part in terms.items()},
        figures,
        (chance * valid.shape[1]).astype(np.float32),
    )


def check_cut(config: RlConfig) -> None:
    """Raises ``ValueError`` for settings that mode ``cut`` cannot be used with."""
    for name, wanted in (("environment", "next_item"), ("normalise", "trie"), ("engine", "torch")):
        if getattr(config, name) != wanted:
            raise ValueError(f"rl.mode = {CUT!r} needs rl.{name} = {wanted!r}, got {getattr(config, name)!r}")
