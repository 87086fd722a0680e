"""Rollouts by ``generate`` of transformers: the reference that the other engines are tested and measured against.

It is the common way to do this, at its fairest: a key/value cache, a whole chunk a call, exactly L new tokens, and a
dictionary from prefix to children that is built once a trie. Every context still becomes G copies of itself, so the
cost grows with G * (P + L). Left out: sampling, whose draws here would hang on the process's global generator.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from sidgym.agents.engine_base import ChunkedEngine, make_rollouts
from sidgym.agents.merger import refuse_merged
from sidgym.agents.policy import Policy, prompt_tensors
from sidgym.agents.tree_search import Found, Request
from sidgym.envs.records import Episodes, Rollouts
from sidgym.sid.trie import Trie

DEAD = -1e8
"""``generate`` starts all copies of a context but the first at -1e9; what ends below this has displaced none."""

Children = dict[tuple[int, ...], list[int]]
"""Token ids of the codes read so far -> token ids that may follow."""


@dataclass
class HfEngine(ChunkedEngine):
    """Beam search by ``generate``, ``chunk`` contexts a call. Shares the policy's model."""

    _known: tuple[Trie, Children] | None = field(default=None, repr=False)  # the trie seen last
    modes: ClassVar[tuple[str, ...]] = ("beam",)

    def __post_init__(self) -> None:
        refuse_merged(self.policy.model, "hf")

    def _check(self, request: Request) -> None:
        if request.mode not in self.modes or request.lanes != 1:
            raise ValueError(
                f"engine hf rolls out mode 'beam' in one lane only; got mode {request.mode!r}, lanes {request.lanes}: "
                "use engine torch"
            )
        super()._check(request)

    def _rollout_chunk(self, episodes: Episodes, request: Request) -> Rollouts:
        group, trie, children = request.group, request.trie, self._children(request.trie)
        ids, mask = prompt_tensors(self.policy, episodes)
        prompt, levels = ids.shape[1], self.policy.levels
        model: Any = self.policy.model
        out: Any = model.generate(
            ids,
            attention_mask=mask.long(),
            prefix_allowed_tokens_fn=lambda _, sentence: children[tuple(sentence[prompt:].tolist())],
            # generate masks the log-probabilities of the whole vocabulary; the trie policy sums to one after that.
            renormalize_logits=self.normalise == "trie",
            num_beams=group,
            num_return_sequences=group,
            max_new_tokens=levels,
            min_new_tokens=levels,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_scores=True,
            # Greedy search, which is what one beam gets, gives masked logits as scores.
            output_logits=group == 1,
        )
        tokens = out.sequences[:, prompt:]
        logp = torch.stack([self._chosen(out, tokens, level) for level in range(levels)], dim=-1)
        shape = (len(episodes), group)
        alive = torch.ones(shape, dtype=torch.bool) if group == 1 else out.sequences_scores.view(shape) > DEAD
        alive = alive.to(ids.device)
        codes = self.policy.tokens.codes_of(tokens.reshape(*shape, levels))
        logp = logp.view(*shape, levels).masked_fill(~alive[..., None], 0.0)
        codes = codes.masked_fill(~alive[..., None], -1)
        return make_rollouts(Found(codes, logp, alive), trie, "beam", self.normalise, self.version)

    def _children(self, trie: Trie) -> Children:
        if self._known is None or self._known[0] is not trie:
            self._known = (trie, children_by_prefix(self.policy, trie))
        return self._known[1]

    def _chosen(self, out: Any, tokens: torch.Tensor, level: int) -> torch.Tensor:
        """Log-probabilities (B * G,) of the tokens taken on ``level``, read where each beam stood then."""
        if "beam_indices" not in out:
            picked = out.scores[level].gather(1, tokens[:, level, None])[:, 0]
            return picked - out.logits[level].logsumexp(-1) if self.normalise == "vocab" else picked
        return out.scores[level][out.beam_indices[:, level].long(), tokens[:, level]]


def children_by_prefix(policy: Policy, trie: Trie) -> Children:
    """The trie as a dictionary. One Python step a node: for catalogues that a reference is compared on."""
    out: Children = {}
    prefixes: dict[int, tuple[int, ...]] = {0: ()}
    bounds = trie.level_start.tolist()
    for level in range(trie.depth):
        first, end = bounds[level + 1], bounds[level + 2]
        ids = policy.level_ids(level).to(trie.device)[trie.code[first:end]].tolist()
        parents = trie.parent[first:end].tolist()
        keep = [True] * len(ids) if trie.allowed is None else trie.allowed[first:end].tolist()
        below: dict[int, tuple[int, ...]] = {}
        for node, (token, parent, allowed) in enumerate(zip(ids, parents, keep), start=first):
            if allowed:
                out.setdefault(prefixes[parent], []).append(token)
                below[node] = (*prefixes[parent], token)
        prefixes = below
    return out
