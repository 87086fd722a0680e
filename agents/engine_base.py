"""What engines share: chunks of contexts, the record of what was found, and the weights of a model that is theirs, too.

Left out: drawing the candidates of a chunk, which is each engine's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sidgym.agents.policy import Policy
from sidgym.agents.tree_search import Found, Request
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts, concatenate_rollouts
from sidgym.sid.trie import Trie

TOP_K = 8
"""Codes a level that mode ``top_k`` draws from unless told otherwise."""


@dataclass
class ChunkedEngine:
    """An engine that rolls out ``chunk`` contexts at once, counted from the first context given.

    Results depend on the chunk's shape to the last bit, so callers that compare runs keep it fixed.
    """

    policy: Policy
    chunk: int = 16
    normalise: str = "trie"
    version: int = 0
    modes: ClassVar[tuple[str, ...]] = ()

    def load_weights(self, state: dict[str, torch.Tensor], version: int) -> None:
        """Copies ``state`` into the policy's model and remembers its ``version``; of tied weights one name is enough.

        ``ValueError`` names weights that the model lacks, does not know or has in another shape, and nothing is copied.
        """
        own = self.policy.model.state_dict()
        unknown = [name for name in state if name not in own]
        given = {own[name].data_ptr() for name in state if name in own}
        missing = [name for name, value in own.items() if value.data_ptr() not in given]
        other = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
        if unknown or missing or other:
            raise ValueError(
                f"load_weights: the weights are not this model's; unknown {unknown[:3]}, missing {missing[:3]}, of "
                f"another shape {other[:3]}"
            )
        with torch.no_grad():
            for name, value in state.items():
                if value.data_ptr() != own[name].data_ptr():  # a trainer that shares the model gives its own
                    own[name].copy_(value)
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
        top_k: int = TOP_K,
    ) -> Rollouts:
        """Groups of candidates, best first; in the order drawn where they are drawn.

        ``trie`` restricts the SIDs of this call (``Trie.restrict``); the policy's own trie when None. ``seed`` and each
        context's index give the draws. ``lanes`` draws that many independent groups a context by ``stochastic_beam``,
        one after another on the second axis, (B, lanes * G); only one lane has an ``importance``. ``top_k`` is for the
        mode of that name. Slots beyond the number of SIDs are marked invalid. Raises ``ValueError`` for a mode that the
        engine does not have and ``FloatingPointError`` when the policy yields NaN.
        """
        trie = self.policy.trie if trie is None else trie
        request = Request(group_size, mode, trie, self.normalise, seed, lanes, top_k)
        self._check(request)
        was_training = self.policy.training
        self.policy.eval()
        starts = range(0, len(episodes), self.chunk)
        chunks = [episodes.take(slice(start, start + self.chunk)).trimmed() for start in starts]
        found = self._rollout_chunks(chunks, request)
        self.policy.train(was_training)
        return concatenate_rollouts(found)

    def _check(self, request: Request) -> None:
        """Refuses by ``ValueError`` what the engine cannot do."""
        request.check(self.modes)

    def _rollout_chunks(self, chunks: Sequence[Episodes], request: Request) -> list[Rollouts]:
        return [self._rollout_chunk(chunk, request) for chunk in chunks]

    def _rollout_chunk(self, episodes: Episodes, request: Request) -> Rollouts:
        raise NotImplementedError


def make_rollouts(
    found: Found, trie: Trie, mode: str, normalise: str, version: int, tokens: torch.Tensor | None = None
) -> Rollouts:
    """The record of candidates, valid where they are alive and in ``trie``, with the items of their leaves."""
    leaf = trie.leaf_of(found.codes)
    valid = found.alive & (leaf >= 0)
    items = trie.items_of(torch.where(valid, leaf, -1))
    return Rollouts(
        codes=found.codes.cpu().numpy(),
        valid=valid.cpu().numpy(),
        items=torch.where(valid[..., None], items, PAD_ITEM).cpu().numpy(),
        logp=found.logp.float().cpu().numpy(),
        mode=mode,
        normalise=normalise,
        weight_version=version,
        tokens=None if tokens is None else tokens.cpu().numpy(),
        importance=None if found.importance is None else found.importance.cpu().numpy(),
    )
