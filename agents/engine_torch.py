"""The built-in engine: groups drawn by tree search in plain torch, chunk by chunk, inside a memory budget.

Modes. ``beam``: the G most probable SIDs found by beam search of width G, no length normalisation. ``sample``: G
independent draws, with ``importance`` where the policy is normalised over the whole vocabulary: legal codes are drawn
as if they were all. ``top_k``: the same, each code from the ``top_k`` most probable ones below its prefix, whose
probabilities are made to sum to one; the log-probabilities in the record are the policy's, which a ratio needs, and
``importance`` holds policy over truncated draw. ``dynamic``: of 1.5 G independent draws (rounded up) G that hold the
target, if it was drawn, and the most distinct SIDs (MiniOneRec); biased, and the only mode that looks at a target.
``stochastic_beam``: G draws without replacement, first drawn first (Kool, van Hoof and Welling 2019, "Stochastic Beams
and Where to Find Them": beam search on Gumbel-perturbed log-probabilities), with the ``importance`` that makes a mean
over them unbiased (``importance``). ``free``: beam search over the whole vocabulary without the trie, to measure what
the policy would emit if nothing held it (hallucinated SIDs). Left out: rewards, CUDA graphs.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sidgym.agents.engine_base import ChunkedEngine, make_rollouts
from sidgym.agents.policy import Policy
from sidgym.agents.tree_search import Request, StochasticBeams, TreeSearch
from sidgym.envs.records import Episodes, Rollouts, concatenate_rollouts

MODES = ("beam", "sample", "top_k", "dynamic", "stochastic_beam", "free")

MEMORY = 4 * 2**30
"""Default budget of a chunk's key/value cache and working memory, in bytes."""


@dataclass
class TorchEngine(ChunkedEngine):
    """The built-in engine; it shares the policy's model.

    A chunk that would need more than ``memory`` bytes (``bytes_per_context``) is rolled out in equal parts, which may
    change the last bits; where they begin depends on the chunk alone. A single context is never split.
    """

    memory: int = MEMORY
    modes: ClassVar[tuple[str, ...]] = MODES

    def _rollout_chunk(self, episodes: Episodes, request: Request) -> Rollouts:
        """One chunk: equal histories once where nothing is drawn, and as many parts as the memory asks for."""
        again = None
        if request.mode in ("beam", "free"):
            _, first, inverse = np.unique(episodes.question, axis=0, return_index=True, return_inverse=True)
            if len(first) < len(episodes):
                order = np.sort(first)  # distinct contexts in the order in which they first stand
                again = np.searchsorted(order, first)[inverse.reshape(-1)]
                episodes = episodes.take(order)
        whole_vocabulary = request.mode == "free" or self.normalise == "vocab"
        asked = 0 if episodes.prompt is None else episodes.prompt.shape[1]
        need = bytes_per_context(
            self.policy, episodes.history.shape[1], request.drawn * request.lanes, whole_vocabulary, asked
        )
        rows = max(1, self.memory // need)
        parts = np.array_split(np.arange(len(episodes)), -(-len(episodes) // rows))
        found = concatenate_rollouts([self._rollout_part(episodes.take(part), request) for part in parts])
        return found if again is None else found.take(again)

    def _rollout_part(self, episodes: Episodes, request: Request) -> Rollouts:
        search = StochasticBeams if request.mode == "stochastic_beam" else TreeSearch
        found, tokens = search(self.policy, episodes, request).run(), None
        if request.mode == "free":
            tokens = found.codes
            found = found._replace(codes=self.policy.tokens.codes_of(tokens))
        normalise = "vocab" if request.mode == "free" else self.normalise
        return make_rollouts(found, request.trie, request.mode, normalise, self.version, tokens)


def bytes_per_context(policy: Policy, history: int, group: int, whole_vocabulary: bool, asked: int = 0) -> int:
    """Estimate of what one context of ``history`` items, or ``asked`` in that many tokens, takes during a rollout: the
    cache of P + G * (L - 1) tokens, one block's activations, attention scores and logits."""
    config, levels = policy.model.config.get_text_config(), policy.levels
    width, heads = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = policy.head_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    prompt = max(policy.tokens.frame + history * policy.tokens.per_item, asked)
    cache = 2 * config.num_hidden_layers * groups * size * (prompt + group * (levels - 1))
    activations = max(prompt, group) * (4 * width + 3 * inner + 3 * heads * size)
    scores = 3 * heads * group * (prompt + levels)
    codes = max(len(ids) for ids in policy.tokens.levels)
    logits = group * (2 * codes + (3 * config.vocab_size if whole_vocabulary else 0))
    return 4 * (cache + activations + scores + logits)
