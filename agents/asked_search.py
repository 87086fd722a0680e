"""Tree search whose log-probabilities are asked for, from an engine that keeps keys and values to itself.

The search sends prompts with what each branch has read, as token ids, and the ids whose log-probabilities it wants;
whoever answers need not know the trie. Left out: who answers (``engine_vllm``), and choosing (``tree_search``).

Symbols: B contexts, W branches kept so far, U questions that differ, K codes on a level.
"""

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch

from sidgym.agents.policy import NEGATIVE_INFINITY, Policy, prompt_arrays
from sidgym.agents.tree_cache import TokenTree
from sidgym.agents.tree_search import Request, StochasticBeams, TreeSearch
from sidgym.envs.records import Episodes

Ask = Callable[[list[list[int]], list[list[int]], list[int]], np.ndarray]
"""``(prompts, sets, which)`` -> log-probabilities under the whole softmax of the tokens ``sets[which[i]]`` behind
prompt i, end to end, float32."""


class _NoTree:
    """Stands where a search keeps its keys and values."""

    def prompt(self) -> torch.Tensor:
        """No hidden states: there is nothing to encode."""
        return torch.empty(0)

    def branches(self, tokens: torch.Tensor, path: torch.Tensor, last: bool) -> torch.Tensor:
        return torch.empty(0)


class AskedSearch(TreeSearch):
    """Beams and independent draws; the arguments behind ``ask`` are those of ``TreeSearch``."""

    def __init__(self, ask: Ask, policy: Policy, episodes: Episodes, request: Request):
        super().__init__(policy, episodes, request)
        _, first, same = np.unique(episodes.question, axis=0, return_index=True, return_inverse=True)
        tokens, mask = prompt_arrays(policy, episodes.take(first))
        self.prompts = [row[seen].tolist() for row, seen in zip(tokens, mask)]
        self.same = torch.from_numpy(same.reshape(-1))  # (B,) prompt of each context
        self.ask = ask

    def _grow(self, ids: torch.Tensor, mask: torch.Tensor) -> TokenTree:
        return _NoTree()

    def _feed(self, level: int) -> torch.Tensor:
        return self._step(torch.empty(0), self.nodes, level)

    def _step(self, hidden: torch.Tensor, nodes: torch.Tensor, level: int) -> torch.Tensor:
        """Log-probabilities (B, W, K) of the codes below ``nodes`` (B, W); equal questions are asked once."""
        where = (nodes >= 0).nonzero(as_tuple=True)
        prompt = self.same.to(nodes.device)[where[0]]
        distinct, of = (prompt * self.trie.num_nodes + nodes[where]).unique(return_inverse=True)
        # Any branch of those that ask the same will do: they have read the same codes.
        branch = torch.empty_like(distinct).scatter_(0, of, torch.arange(len(of), device=of.device))
        read = self.choices[where][branch]
        found = self._ask_all(distinct // self.trie.num_nodes, distinct % self.trie.num_nodes, read, level)
        step = torch.full((*nodes.shape, found.shape[-1]), NEGATIVE_INFINITY, device=nodes.device)
        step[where] = found.to(nodes.device)[of]
        return step

    def _ask_all(self, prompt: torch.Tensor, node: torch.Tensor, read: torch.Tensor, level: int) -> torch.Tensor:
        """Log-probabilities (U, K) below ``node`` (U,), reached by codes ``read`` (U, level) behind ``prompt`` (U,)."""
        allowed = self.trie.children_mask(node, level).cpu()
        step = torch.zeros(allowed.shape).masked_fill_(~allowed, NEGATIVE_INFINITY)
        count = allowed.sum(-1)
        # An only child has probability 1 in the trie, whatever the model says.
        asked = (count > (self.normalise == "trie")).nonzero()[:, 0]
        if not len(asked):
            return step
        nodes, which = node.cpu()[asked].unique(return_inverse=True)
        _, column = self.trie.children_mask(nodes.to(node.device), level).cpu().nonzero(as_tuple=True)
        first = torch.empty_like(nodes).scatter_(0, which, asked)
        ids = iter(self.policy.level_ids(level).cpu()[column].tolist())
        sets = [list(islice(ids, size)) for size in count[first].tolist()]
        prefix = [self.policy.level_ids(at)[read[:, at]] for at in range(level)]
        path = torch.stack(prefix, -1).cpu()[asked].tolist() if prefix else [[]] * len(asked)
        questions = [self.prompts[p] + below for p, below in zip(prompt.cpu()[asked].tolist(), path)]
        logp = torch.from_numpy(np.array(self.ask(questions, sets, which.tolist())))
        if bool(torch.isnan(logp).any()):
            raise FloatingPointError("the policy gave NaN log-probabilities; its weights or its input are broken")
        rows = step[asked]
        rows[allowed[asked]] = logp
        step[asked] = rows.log_softmax(-1) if self.normalise == "trie" else rows
        return step


class AskedStochasticBeams(AskedSearch, StochasticBeams):
    """Draws without replacement; the arguments behind ``ask`` are those of ``StochasticBeams``."""
