"""Groups of candidates drawn under the trie, each prompt encoded once: the search itself.

The candidates of a group are a small tree behind their prompt (``tree_cache``): nothing is copied or reordered when
beams fork. Left out: chunks, memory and records, which are the engine's (``engine_torch``).

Symbols: B contexts, W branches kept so far (at most G), U of them with a prefix of their own, K codes on a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sidgym.agents.importance import without_replacement
from sidgym.agents.policy import NEGATIVE_INFINITY, Policy, prompt_tensors
from sidgym.agents.tree_cache import TokenTree, grow_tree
from sidgym.envs.records import Episodes
from sidgym.sid.trie import Trie


@dataclass(frozen=True)
class Request:
    """What an engine was asked for."""

    group: int
    mode: str
    trie: Trie
    normalise: str
    seed: int
    lanes: int
    top_k: int

    def check(self, known: Sequence[str]) -> None:
        """Raises ``ValueError`` for what no engine with the modes ``known`` can do."""
        if self.mode not in known:
            raise ValueError(f"unknown rollout mode {self.mode!r}; known: {', '.join(known)}")
        for name, value in (("group_size", self.group), ("top_k", self.top_k)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        apart = self.mode == "stochastic_beam"
        if self.lanes < 1 or (self.lanes > 1 and not apart):
            raise ValueError(
                f"lanes must be at least 1, and 1 unless the mode is stochastic_beam; got {self.lanes}, {self.mode}"
            )
        if apart and self.normalise != "trie":
            raise ValueError(
                "stochastic_beam draws from the distribution over SIDs, which normalise = "
                f"{self.normalise!r} does not give; use trie"
            )

    @property
    def drawn(self) -> int:
        """Candidates that a search of one lane holds before any are left out: half as many again in mode dynamic."""
        return -(-3 * self.group // 2) if self.mode == "dynamic" else self.group


class Found(NamedTuple):
    """A group's candidates, (B, G) of them."""

    codes: torch.Tensor  # (B, G, L), tokens in mode free; -1 where there are fewer SIDs than G
    logp: torch.Tensor  # (B, G, L) under the policy
    alive: torch.Tensor  # (B, G)
    importance: torch.Tensor | None = None  # (B, G), as in ``Rollouts``


class TreeSearch:
    """One batch's search: beams in modes ``beam`` and ``free``, independent draws in ``sample``, ``top_k`` and
    ``dynamic``."""

    def __init__(self, policy: Policy, episodes: Episodes, request: Request):
        self.policy, self.episodes, self.request, self.group = policy, episodes, request, request.drawn
        self.mode, self.trie, self.normalise = request.mode, request.trie, request.normalise
        ids, mask = prompt_tensors(policy, episodes)
        self.tree = self._grow(ids, mask)
        self.draws = self.mode in ("sample", "top_k", "dynamic")
        # Codes are drawn as if those that may be drawn were all, and counted by the mass that they have.
        self.renormalised = self.mode == "top_k" or (self.mode == "sample" and self.normalise != "trie")
        self.noise = _gumbel(episodes.index, request.seed, policy, self.group) if self.draws else None
        batch, device = len(episodes), ids.device
        self.rows = torch.arange(batch, device=device)[:, None]
        self.choices = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)  # codes; token ids in mode free
        self.logp = torch.zeros(batch, 1, 0, device=device)
        self.score = torch.zeros(batch, 1, device=device)
        self.nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.path = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)  # own ancestors among the branches fed
        self.reach = torch.zeros(batch, 1, device=device)  # log-probability of what draws are made from

    def _grow(self, ids: torch.Tensor, mask: torch.Tensor) -> TokenTree:
        return grow_tree(self.policy, ids, mask)

    def run(self) -> Found:
        """The candidates."""
        step = self._step(self.tree.prompt(), self.nodes, 0)
        self._extend(step, 0)
        for level in range(1, self.policy.levels):
            self._extend(self._feed(level), level)
        alive = (self.score > NEGATIVE_INFINITY)[..., None]
        codes = self._fill(self.choices.masked_fill(~alive, -1), -1)
        logp, alive = self._fill(self.logp.masked_fill(~alive, 0.0)), self._fill(alive)[..., 0]
        found = Found(codes, logp, alive, self._importance(logp, alive))
        return self._most_distinct(found) if self.mode == "dynamic" else found

    def _importance(self, logp: torch.Tensor, alive: torch.Tensor) -> torch.Tensor | None:
        """``Rollouts.importance`` (B, G), from log-probabilities (B, G, L); None where nothing is weighted."""
        return self.reach.exp() if self.renormalised else None

    def _most_distinct(self, found: Found) -> Found:
        """G of the draws: the target's if there is one, and as many SIDs as possible (MiniOneRec, dynamic sampling)."""
        target = self.episodes.target
        codes = np.where((target >= 0)[:, None], self.policy.table.codes[np.maximum(target, 0)], -1)
        wanted = (found.codes == torch.from_numpy(codes).to(found.codes.device)[:, None]).all(-1)
        kept = most_distinct(self.nodes, wanted, self.request.group)
        return Found(found.codes[self.rows, kept], found.logp[self.rows, kept], found.alive[self.rows, kept])

    def _fill(self, values: torch.Tensor, value: int = 0) -> torch.Tensor:
        """(B, W, ...) padded to G where there are fewer SIDs than that."""
        return torch.nn.functional.pad(values, (0, 0, 0, self.group - values.shape[1]), value=value)

    def _feed(self, level: int) -> torch.Tensor:
        """Log-probabilities (B, W, K) of the codes that may follow the branches' newest ones.

        Fed is only what the answer hangs on: of branches with the same prefix one (independent draws often share
        theirs), and under the trie policy none from which a single SID can be reached, whose codes are certain.
        """
        if self.mode == "free":
            own = torch.arange(self.choices.shape[1], device=self.choices.device).expand(self.choices.shape[:2])
            hidden = self.tree.branches(self.choices[..., -1], self.path, level == self.policy.levels - 1)
            self.path = torch.cat([self.path, own[..., None]], dim=-1)
            return self._step(hidden, self.nodes, level)
        settled = self._settled()
        first, of = _distinct(self.nodes, ~settled)
        certain = torch.where(self.trie.children_mask(self.nodes, level), 0.0, NEGATIVE_INFINITY)
        if not first.shape[1]:
            return certain  # and so it stays: nothing will be fed again
        tokens = self.policy.level_ids(level - 1)[self.choices[self.rows, first, -1]]
        hidden = self.tree.branches(tokens, self.path[self.rows, first], level == self.policy.levels - 1)
        self.path = torch.cat([self.path, of[..., None]], dim=-1)
        step = self._step(hidden, self.nodes[self.rows, first], level)[self.rows, of]
        return torch.where(settled[..., None], certain, step)

    def _settled(self) -> torch.Tensor:
        """Branches (B, W) whose further codes are certain: they reach one SID, or none because there are too few.
        Under the whole vocabulary nothing is certain."""
        none = self.nodes < 0
        return none | self.trie.reaches_one(self.nodes) if self.normalise == "trie" else none

    def _step(self, hidden: torch.Tensor, nodes: torch.Tensor, level: int) -> torch.Tensor:
        """Log-probabilities (B, U, K) of the codes below ``nodes`` (B, U)."""
        if self.mode == "free":
            step = torch.log_softmax(self.policy.logits(hidden), dim=-1)
        else:
            step = self.policy.level_logp(hidden, nodes, level, self.normalise, self.trie)
        if bool(torch.isnan(step).any()):
            raise FloatingPointError("the policy gave NaN log-probabilities; its weights or its input are broken")
        return step

    def _extend(self, step: torch.Tensor, level: int) -> None:
        """Chooses the branches that go on, and the code that each takes."""
        branch, choice, score = self._choose(step, level)
        self._keep(branch, choice, score, step, level)

    def _choose(self, step: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From log-probabilities (B, W, K) of the next codes: branches, codes and total scores (B, W')."""
        if self.draws:
            return self._draw(step, level)
        total = self.score[..., None] + step
        score, flat = total.flatten(1).topk(min(self.group, total[0].numel()), dim=1)
        return flat // step.shape[-1], flat % step.shape[-1], score

    def _draw(self, step: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Independent draws by the Gumbel trick, from the distribution over allowed codes."""
        batch = step.shape[0]
        rows = torch.arange(batch, device=step.device)[:, None]
        branch = torch.arange(self.group, device=step.device).expand(batch, self.group)
        branch = branch if step.shape[1] == self.group else torch.zeros_like(branch)
        own = step[rows, branch]
        if self.mode == "top_k":
            likely, code = own.topk(min(self.request.top_k, own.shape[-1]), dim=-1)
            own = torch.full_like(own, NEGATIVE_INFINITY).scatter(-1, code, likely)
        if self.renormalised:
            self.reach = self.reach[rows, branch] + own.logsumexp(-1).clamp_max(0)
        noise = self.noise[level] if self.noise is not None else 0.0
        choice = (own + noise).argmax(-1)
        return branch, choice, self.score[rows, branch] + step[rows, branch, choice]

    def _keep(
        self, branch: torch.Tensor, choice: torch.Tensor, score: torch.Tensor, step: torch.Tensor, level: int
    ) -> None:
        rows = self.rows
        alive = score > NEGATIVE_INFINITY
        if self.mode != "free":
            nodes = self.nodes[rows, branch]
            self.nodes = torch.where(alive, self.trie.step(nodes, choice, level), -1)
        self.choices = torch.cat([self.choices[rows, branch], choice[..., None]], dim=-1)
        self.logp = torch.cat([self.logp[rows, branch], step[rows, branch, choice][..., None]], dim=-1)
        self.path = self.path[rows, branch]
        self.score = score


class StochasticBeams(TreeSearch):
    """R independent searches a context, each of G distinct SIDs; the tree's branches are (R, W) flattened.

    A branch carries the largest Gumbel-perturbed log-probability of the SIDs below it. Its children's are drawn anew
    under the condition that the largest of them is their parent's, so the G largest at the leaves are those of a
    perturbation of every SID: a sample without replacement, in the order in which it is drawn.
    """

    def __init__(self, policy: Policy, episodes: Episodes, request: Request):
        super().__init__(policy, episodes, request)
        self.lanes = request.lanes
        self.streams = [np.random.default_rng([request.seed, int(index), 2]) for index in episodes.index]
        self.perturbed = self._noise(1)  # (B, R, W)

    def _noise(self, *shape: int) -> torch.Tensor:
        """Gumbel noise (B, R, ...), of each context's own stream."""
        drawn = [stream.gumbel(size=(self.lanes, *shape)).astype(np.float32) for stream in self.streams]
        return torch.from_numpy(np.stack(drawn)).to(self.rows.device)

    def _choose(self, step: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, _, codes = step.shape
        width = self.perturbed.shape[-1]
        shape = (batch, self.lanes, width, codes)
        total = (self.score[..., None] + step).reshape(batch, -1, width, codes).expand(shape)
        fresh = total + self._noise(width, codes)
        below = _given_maximum(fresh, self.perturbed[..., None]).flatten(2)
        count = min(self.group, below.shape[-1])
        self.perturbed, flat = below.topk(count, dim=-1)  # (B, R, W')
        lane = torch.arange(self.lanes, device=step.device)[:, None] * (width if level else 0)
        branch = (lane + flat // codes).flatten(1)
        score = total.flatten(2).gather(-1, flat).flatten(1)
        return branch, (flat % codes).flatten(1), score

    def _importance(self, logp: torch.Tensor, alive: torch.Tensor) -> torch.Tensor | None:
        return without_replacement(logp.sum(-1), alive) if self.lanes == 1 else None

    def _fill(self, values: torch.Tensor, value: int = 0) -> torch.Tensor:
        apart = values.unflatten(1, (self.lanes, -1))
        return torch.nn.functional.pad(apart, (0, 0, 0, self.group - apart.shape[2]), value=value).flatten(1, 2)


def _given_maximum(perturbed: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    """Gumbel variables (..., K) moved monotonously so that their largest is ``maximum`` (..., 1); -inf stays.

    ``-log(exp(-maximum) - exp(-largest) + exp(-perturbed))`` in the stable form of Kool et al. 2019, appendix B.3.
    """
    largest = perturbed.amax(-1, keepdim=True)
    gap = torch.where(perturbed > NEGATIVE_INFINITY, perturbed - largest, NEGATIVE_INFINITY)
    shift = maximum - torch.where(perturbed > NEGATIVE_INFINITY, perturbed, 0.0) + torch.log1p(-gap.exp())
    moved = maximum - shift.clamp_min(0) - torch.log1p((-shift.abs()).exp())
    return torch.where(perturbed > NEGATIVE_INFINITY, moved, NEGATIVE_INFINITY)


def most_distinct(nodes: torch.Tensor, wanted: torch.Tensor, count: int) -> torch.Tensor:
    """Places (B, count), ascending, of those that stay among draws with leaves ``nodes`` (B, W).

    A ``wanted`` one if there is any, then the first draw of as many other leaves as possible, then the rest, each in
    the order drawn.
    """
    ordered, order = nodes.sort(dim=1, stable=True)
    new = torch.ones_like(nodes, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.empty_like(new).scatter_(1, order, new)
    urgency = first.long() + (first & wanted)
    return urgency.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def _distinct(nodes: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Branches (B, U) that hold the distinct ``wanted`` ones among nodes (B, W), and where among them each branch's
    node is (B, W). A row that has fewer repeats some branch; the place of an unwanted one means nothing."""
    ordered, order = nodes.masked_fill(~wanted, torch.iinfo(nodes.dtype).max).sort(dim=1, stable=True)
    new = wanted.gather(1, order)
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    number = new.cumsum(1) - 1
    of = torch.empty_like(nodes).scatter_(1, order, number.clamp_min(0))
    count = int(number.max()) + 1
    each = torch.arange(count, device=nodes.device).expand(len(nodes), count).contiguous()
    place = torch.searchsorted(number, each).clamp_max(nodes.shape[1] - 1)
    return order.gather(1, place), of


def _gumbel(index: np.ndarray, seed: int, policy: Policy, group: int) -> list[torch.Tensor]:
    """Gumbel noise (B, G, K_l) for each level, drawn from the run's seed and each context's own index."""
    sizes = [len(policy.level_ids(level)) for level in range(policy.levels)]
    rows = [np.random.default_rng([seed, int(i)]).gumbel(size=(group, sum(sizes))).astype(np.float32) for i in index]
    noise = torch.from_numpy(np.stack(rows)).to(policy.device)
    return list(noise.split(sizes, dim=-1))
