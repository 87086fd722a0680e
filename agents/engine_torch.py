"""The built-in engine: groups drawn by tree search in plain torch, chunk by chunk, inside a memory budget.

Modes. ``beam``: the G most probable SIDs found by beam search of width G, no length normalisation. ``sample``: G
independent draws. ``stochastic_beam``: G draws without replacement, first drawn first (Kool, van Hoof and Welling 2019,
"Stochastic Beams and Where to Find Them": beam search on Gumbel-perturbed log-probabilities). ``free``: beam search
over the whole vocabulary without the trie, to measure what the policy would emit if nothing held it (hallucinated
SIDs). Left out: rewards, CUDA graphs.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sidgym.agents.policy import Policy
from sidgym.agents.tree_search import StochasticBeams, TreeSearch
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts, concatenate_rollouts
from sidgym.sid.trie import Trie

MODES = ("beam", "sample", "stochastic_beam", "free")

MEMORY = 4 * 2**30
"""Default budget of a chunk's key/value cache and working memory, in bytes."""


@dataclass
class TorchEngine:
    """The built-in engine; it shares the policy's model.

    ``chunk`` contexts are rolled out at once, counted from the first context given; results depend on the chunk's
    shape to the last bit, so callers that compare runs keep it fixed. A chunk that would need more than ``memory``
    bytes (``bytes_per_context``) is rolled out in equal parts, which may change the last bits; where they begin depends
    on the chunk alone. A single context is never split.
    """

    policy: Policy
    chunk: int = 16
    normalise: str = "trie"
    version: int = 0
    memory: int = MEMORY

    def load_weights(self, state: dict[str, torch.Tensor], version: int) -> None:
        """Copies ``state`` into the policy's model, which this engine rolls out, and remembers its ``version``."""
        load_shared_weights(self.policy, state)
        self.version = version

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
        check_rollout(MODES, mode, group_size, lanes, self.normalise)
        trie = self.policy.trie if trie is None else trie
        was_training = self.policy.training
        self.policy.eval()
        chunks = []
        for start in range(0, len(episodes), self.chunk):
            part = episodes.take(slice(start, start + self.chunk)).trimmed()
            chunks.append(self._rollout_chunk(part, group_size, mode, trie, seed, lanes))
        self.policy.train(was_training)
        return concatenate_rollouts(chunks)

    def _rollout_chunk(
        self, episodes: Episodes, group_size: int, mode: str, trie: Trie, seed: int, lanes: int
    ) -> Rollouts:
        """One chunk: equal histories once where nothing is drawn, and as many parts as the memory asks for."""
        again = None
        if mode in ("beam", "free"):
            _, first, inverse = np.unique(episodes.history, axis=0, return_index=True, return_inverse=True)
            if len(first) < len(episodes):
                order = np.sort(first)  # distinct contexts in the order in which they first stand
                again = np.searchsorted(order, first)[inverse.reshape(-1)]
                episodes = episodes.take(order)
        whole_vocabulary = mode == "free" or self.normalise == "vocab"
        need = bytes_per_context(self.policy, episodes.history.shape[1], group_size * lanes, whole_vocabulary)
        rows = max(1, self.memory // need)
        parts = np.array_split(np.arange(len(episodes)), -(-len(episodes) // rows))
        found = concatenate_rollouts(
            [self._rollout_part(episodes.take(p), group_size, mode, trie, seed, lanes) for p in parts]
        )
        return found if again is None else found.take(again)

    def _rollout_part(
        self, episodes: Episodes, group_size: int, mode: str, trie: Trie, seed: int, lanes: int
    ) -> Rollouts:
        search: TreeSearch
        if mode == "stochastic_beam":
            search = StochasticBeams(self.policy, episodes, group_size, trie, self.normalise, seed, lanes)
        else:
            search = TreeSearch(self.policy, episodes, group_size, mode, trie, self.normalise, seed)
        found, logp, alive = search.run()
        tokens = found if mode == "free" else None
        codes = found if tokens is None else self.policy.tokens.codes_of(tokens)
        return make_rollouts(
            codes, logp, alive, trie, mode, "vocab" if mode == "free" else self.normalise, self.version, tokens
        )


def check_rollout(known: tuple[str, ...], mode: str, group_size: int, lanes: int, normalise: str) -> None:
    """Refuses by ``ValueError`` what an engine with the modes ``known`` cannot roll out."""
    if mode not in known:
        raise ValueError(f"unknown rollout mode {mode!r}; known: {', '.join(known)}")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if lanes < 1 or (lanes > 1 and mode != "stochastic_beam"):
        raise ValueError(f"lanes must be at least 1, and 1 unless the mode is stochastic_beam; got {lanes}, {mode}")
    if mode == "stochastic_beam" and normalise != "trie":
        raise ValueError(
            f"stochastic_beam draws from the distribution over SIDs, which normalise = {normalise!r} does not give; "
            "use trie"
        )


def make_rollouts(
    codes: torch.Tensor,
    logp: torch.Tensor,
    alive: torch.Tensor,
    trie: Trie,
    mode: str,
    normalise: str,
    version: int,
    tokens: torch.Tensor | None = None,
) -> Rollouts:
    """The record of candidates with codes and log-probabilities (B, G, L), valid where ``alive`` (B, G) and in
    ``trie``, with the items of their leaves."""
    leaf = trie.leaf_of(codes)
    valid = alive & (leaf >= 0)
    items = trie.items_of(torch.where(valid, leaf, -1))
    return Rollouts(
        codes=codes.cpu().numpy(),
        valid=valid.cpu().numpy(),
        items=torch.where(valid[..., None], items, PAD_ITEM).cpu().numpy(),
        logp=logp.float().cpu().numpy(),
        mode=mode,
        normalise=normalise,
        weight_version=version,
        tokens=None if tokens is None else tokens.cpu().numpy(),
    )


def load_shared_weights(policy: Policy, state: dict[str, torch.Tensor]) -> None:
    """Copies ``state`` into the policy's model in place; of tied weights one name is enough.

    ``ValueError`` names weights that the model lacks, does not know or has in another shape; nothing was copied then.
    """
    model = policy.model
    own = model.state_dict()
    unknown = [name for name in state if name not in own]
    given = {own[name].data_ptr() for name in state if name in own}
    missing = [name for name, value in own.items() if value.data_ptr() not in given]
    other = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
    if unknown or missing or other:
        raise ValueError(
            f"load_weights: the weights are not this model's; unknown {unknown[:3]}, missing {missing[:3]}, of another "
            f"shape {other[:3]}"
        )
    with torch.no_grad():
        for name, value in state.items():
            if value.data_ptr() != own[name].data_ptr():  # a trainer that shares the model gives its own
                own[name].copy_(value)


def bytes_per_context(policy: Policy, history: int, group: int, whole_vocabulary: bool) -> int:
    """Estimate of what one context of ``history`` items takes during a rollout: the cache of P + G * (L - 1) tokens,
    one block's activations, attention scores and logits."""
    config, levels = policy.model.config.get_text_config(), policy.levels
    width, heads = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or width // heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    prompt = 1 + history * levels
    cache = 2 * config.num_hidden_layers * groups * size * (prompt + group * (levels - 1))
    activations = max(prompt, group) * (4 * width + 3 * inner + 3 * heads * size)
    scores = 3 * heads * group * (prompt + levels)
    codes = max(len(ids) for ids in policy.tokens.levels)
    logits = group * (2 * codes + (3 * config.vocab_size if whole_vocabulary else 0))
    return 4 * (cache + activations + scores + logits)
