"""Rollout engine in plain torch: groups of candidates drawn under the trie, each prompt encoded once.

The candidates of a group are a small tree behind their prompt. One key/value cache holds the prompt once and every
candidate token after it; a 4-D mask lets each token see the prompt and its own ancestors (tree attention), so nothing
is copied or reordered when beams fork. Left out: rewards, CUDA graphs, memory budgets and other engines.

Modes. ``beam``: the G most probable SIDs found by beam search of width G, no length normalisation. ``sample``: G
independent draws. ``stochastic_beam``: G draws without replacement, first drawn first (Kool, van Hoof and Welling 2019,
"Stochastic Beams and Where to Find Them": beam search on Gumbel-perturbed log-probabilities). ``free``: beam search
over the whole vocabulary without the trie, to measure what the policy would emit if nothing held it (hallucinated
SIDs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import DynamicCache

from sidgym.agents.policy import (
    NEGATIVE_INFINITY,
    Policy,
    additive_mask,
    causal_visibility,
    position_ids,
    prompt_tensors,
)
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts, concatenate_rollouts
from sidgym.sid.registry import resolve
from sidgym.sid.trie import Trie

MODES = ("beam", "sample", "stochastic_beam", "free")


class Engine(Protocol):
    """What draws candidates. ``version`` is the version of the weights in use."""

    version: int

    def rollout(
        self,
        episodes: Episodes,
        group_size: int,
        mode: str = "beam",
        trie: Trie | None = None,
        seed: int = 0,
        lanes: int = 1,
    ) -> Rollouts:
        """Groups of ``group_size`` candidates for each context, in the order of the contexts."""


@dataclass
class TorchEngine:
    """The built-in engine.

    ``chunk`` contexts are rolled out at once, counted from the first context given; results depend on the chunk's
    shape to the last bit, so callers that compare runs keep it fixed.
    """

    policy: Policy
    chunk: int = 16
    normalise: str = "trie"
    version: int = 0

    @torch.no_grad()
    def rollout(
        self,
        episodes: Episodes,
        group_size: int,
        mode: str = "beam",
        trie: Trie | None = None,
        seed: int = 0,
        lanes: int = 1,
    ) -> Rollouts:
        """Groups of candidates, best first (``sample`` and ``stochastic_beam``: in the order drawn).

        ``trie`` restricts the SIDs of this call (``Trie.restrict``); the policy's own trie when None. ``seed`` and each
        context's index give the draws. ``lanes`` draws that many independent groups a context by ``stochastic_beam``,
        one after another on the second axis, (B, lanes * G). Slots beyond the number of SIDs are marked invalid. Raises
        ``ValueError`` for an unknown mode and ``FloatingPointError`` when the policy yields NaN.
        """
        if mode not in MODES:
            raise ValueError(f"unknown rollout mode {mode!r}; known: {', '.join(MODES)}")
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        if lanes < 1 or (lanes > 1 and mode != "stochastic_beam"):
            raise ValueError(f"lanes must be at least 1, and 1 unless the mode is stochastic_beam; got {lanes}, {mode}")
        if mode == "stochastic_beam" and self.normalise != "trie":
            raise ValueError(
                "stochastic_beam draws from the distribution over SIDs, which normalise = "
                f"{self.normalise!r} does not give; use trie"
            )
        trie = self.policy.trie if trie is None else trie
        was_training = self.policy.training
        self.policy.eval()
        chunks = [
            self._rollout_chunk(
                episodes.take(slice(start, start + self.chunk)).trimmed(), group_size, mode, trie, seed, lanes
            )
            for start in range(0, len(episodes), self.chunk)
        ]
        self.policy.train(was_training)
        return concatenate_rollouts(chunks)

    def _rollout_chunk(
        self, episodes: Episodes, group_size: int, mode: str, trie: Trie, seed: int, lanes: int
    ) -> Rollouts:
        search: _TreeSearch
        if mode == "stochastic_beam":
            search = _StochasticBeams(self.policy, episodes, group_size, trie, self.normalise, seed, lanes)
        else:
            search = _TreeSearch(self.policy, episodes, group_size, mode, trie, self.normalise, seed)
        tokens, logp, alive = search.run()
        codes = self.policy.tokens.codes_of(tokens)
        leaf = trie.leaf_of(codes)
        valid = alive & (leaf >= 0)
        leaf = torch.where(valid, leaf, -1)
        items = trie.items_of(leaf)
        items = torch.where(valid[..., None], items, PAD_ITEM)
        return Rollouts(
            codes=codes.cpu().numpy(),
            valid=valid.cpu().numpy(),
            items=items.cpu().numpy(),
            logp=logp.float().cpu().numpy(),
            mode=mode,
            normalise="vocab" if mode == "free" else self.normalise,
            weight_version=self.version,
            tokens=tokens.cpu().numpy() if mode == "free" else None,
        )


class _TreeSearch:
    """One chunk's search; W is the number of branches kept so far (at most G)."""

    def __init__(
        self, policy: Policy, episodes: Episodes, group: int, mode: str, trie: Trie, normalise: str, seed: int
    ):
        self.policy, self.group, self.mode, self.trie, self.normalise = policy, group, mode, trie, normalise
        self.ids, self.mask = prompt_tensors(policy, episodes.history)
        self.noise = _gumbel(episodes.index, seed, policy, group) if mode == "sample" else None
        self.cache = DynamicCache()
        batch = len(episodes)
        device = self.ids.device
        self.length = self.mask.sum(-1)  # (B,) visible prompt tokens: the position of the next token
        self.tokens = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)
        self.logp = torch.zeros(batch, 1, 0, device=device)
        self.score = torch.zeros(batch, 1, device=device)
        self.nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.slots = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)  # own ancestors' places in the cache

    def run(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (B, G, L), log-probabilities (B, G, L) and alive (B, G)."""
        hidden = self._encode_prompt()
        for level in range(self.policy.levels):
            if level:
                hidden = self._feed(level)
            self._extend(hidden, level)
        alive = self.score > NEGATIVE_INFINITY
        tokens = self._fill(self.tokens)
        return tokens, self._fill(self.logp.masked_fill(~alive[..., None], 0.0)), self._fill(alive[..., None])[..., 0]

    def _fill(self, values: torch.Tensor) -> torch.Tensor:
        """(B, W, ...) padded with zeros to G where there are fewer SIDs than that."""
        return torch.nn.functional.pad(values, (0, 0, 0, self.group - values.shape[1]))

    def _encode_prompt(self) -> torch.Tensor:
        hidden = self.policy.hidden(
            input_ids=self.ids,
            attention_mask=additive_mask(causal_visibility(self.mask), self.policy.model),
            position_ids=position_ids(self.mask),
            past_key_values=self.cache,
            use_cache=True,
        )
        return hidden[:, -1:]  # (B, 1, H)

    def _feed(self, level: int) -> torch.Tensor:
        """Hidden states (B, W, H) of the branches' newest tokens, each seeing the prompt and its own ancestors."""
        batch, width, _ = self.tokens.shape
        past = self.cache.get_seq_length()
        own = past + torch.arange(width, device=self.ids.device).expand(batch, width)
        self.slots = torch.cat([self.slots, own[..., None]], dim=-1)
        visible = torch.zeros(batch, width, past + width, dtype=torch.bool, device=self.ids.device)
        visible[:, :, : self.mask.shape[1]] = self.mask[:, None]
        visible.scatter_(2, self.slots, True)
        return self.policy.hidden(
            input_ids=self.tokens[..., -1],
            attention_mask=additive_mask(visible, self.policy.model),
            position_ids=(self.length[:, None] + level - 1).expand(batch, width),
            past_key_values=self.cache,
            use_cache=True,
        )

    def _extend(self, hidden: torch.Tensor, level: int) -> None:
        """Chooses the branches that go on, and the code that each takes."""
        if self.mode == "free":
            step = torch.log_softmax(self.policy.logits(hidden), dim=-1)
        else:
            step = self.policy.level_logp(hidden, self.nodes, level, self.normalise, self.trie)
        if bool(torch.isnan(step).any()):
            raise FloatingPointError("the policy gave NaN log-probabilities; its weights or its input are broken")
        branch, choice, score = self._choose(step, level)
        self._keep(branch, choice, score, step, level)

    def _choose(self, step: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From log-probabilities (B, W, K) of the next codes: branches, codes and total scores (B, W')."""
        if self.mode == "sample":
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
        noise = self.noise[level] if self.noise is not None else 0.0
        choice = (step[rows, branch] + noise).argmax(-1)
        return branch, choice, self.score[rows, branch] + step[rows, branch, choice]

    def _keep(
        self, branch: torch.Tensor, choice: torch.Tensor, score: torch.Tensor, step: torch.Tensor, level: int
    ) -> None:
        rows = torch.arange(step.shape[0], device=step.device)[:, None]
        token = choice if self.mode == "free" else self.policy.level_ids(level)[choice]
        alive = score > NEGATIVE_INFINITY
        nodes = self.nodes[rows, branch]
        if self.mode != "free":
            nodes = torch.where(alive, self.trie.step(nodes, choice), -1)
        self.nodes = nodes
        self.tokens = torch.cat([self.tokens[rows, branch], token[..., None]], dim=-1)
        self.logp = torch.cat([self.logp[rows, branch], step[rows, branch, choice][..., None]], dim=-1)
        self.slots = self.slots[rows, branch]
        self.score = score


class _StochasticBeams(_TreeSearch):
    """R independent searches a context, each of G distinct SIDs; the tree's branches are (R, W) flattened.

    A branch carries the largest Gumbel-perturbed log-probability of the SIDs below it. Its children's are drawn anew
    under the condition that the largest of them is their parent's, so the G largest at the leaves are those of a
    perturbation of every SID: a sample without replacement, in the order in which it is drawn.
    """

    def __init__(
        self, policy: Policy, episodes: Episodes, group: int, trie: Trie, normalise: str, seed: int, lanes: int
    ):
        super().__init__(policy, episodes, group, "stochastic_beam", trie, normalise, seed)
        self.lanes = lanes
        self.streams = [np.random.default_rng([seed, int(index), 2]) for index in episodes.index]
        self.perturbed = self._noise(1)  # (B, R, W)

    def _noise(self, *shape: int) -> torch.Tensor:
        """Gumbel noise (B, R, ...), of each context's own stream."""
        drawn = [stream.gumbel(size=(self.lanes, *shape)).astype(np.float32) for stream in self.streams]
        return torch.from_numpy(np.stack(drawn)).to(self.ids.device)

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

    def _fill(self, values: torch.Tensor) -> torch.Tensor:
        apart = values.unflatten(1, (self.lanes, -1))
        return torch.nn.functional.pad(apart, (0, 0, 0, self.group - apart.shape[2])).flatten(1, 2)


def _given_maximum(perturbed: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    """Gumbel variables (..., K) moved monotonously so that their largest is ``maximum`` (..., 1); -inf stays.

    ``-log(exp(-maximum) - exp(-largest) + exp(-perturbed))`` in the stable form of Kool et al. 2019, appendix B.3.
    """
    largest = perturbed.amax(-1, keepdim=True)
    gap = torch.where(perturbed > NEGATIVE_INFINITY, perturbed - largest, NEGATIVE_INFINITY)
    shift = maximum - torch.where(perturbed > NEGATIVE_INFINITY, perturbed, 0.0) + torch.log1p(-gap.exp())
    moved = maximum - shift.clamp_min(0) - torch.log1p((-shift.abs()).exp())
    return torch.where(perturbed > NEGATIVE_INFINITY, moved, NEGATIVE_INFINITY)


def _gumbel(index: np.ndarray, seed: int, policy: Policy, group: int) -> list[torch.Tensor]:
    """Gumbel noise (B, G, K_l) for each level, drawn from the run's seed and each context's own index."""
    sizes = [len(policy.level_ids(level)) for level in range(policy.levels)]
    rows = [np.random.default_rng([seed, int(i)]).gumbel(size=(group, sum(sizes))).astype(np.float32) for i in index]
    noise = torch.from_numpy(np.stack(rows)).to(policy.device)
    return list(noise.split(sizes, dim=-1))


ENGINES: dict[str, Callable[[Policy, int, str], Engine]] = {"torch": TorchEngine}
"""Name -> ``(policy, chunk, normalise) -> Engine``."""


def make_engine(name: str, policy: Policy, chunk: int, normalise: str) -> Engine:
    """The engine called ``name`` over ``policy``. Raises ``ValueError`` that lists what is known."""
    return resolve("engine", name, ENGINES)(policy, chunk, normalise)
