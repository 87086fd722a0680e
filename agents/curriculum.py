"""A curriculum over hit rate: contexts that the policy can learn from first, all of them in the end.

Where nine groups of ten hold no hit, a rollout costs what it always costs and teaches next to nothing. With
``rl.curriculum`` = kappa > 0 an iteration draws its contexts without replacement in proportion to
``h^(kappa (1 - t/T))``: h is the chance that the policy that training starts from hits the target in G independent
draws, t of T iterations are done. So the first iterations hold what can be hit and the last ones are drawn evenly. The
draw is a function of seed and iteration alone; contexts may come again in a later one. Left out: chances under the
trained policy, which would make what is drawn depend on what was learned and on when a run was stopped.

Compare with controls that have the same curriculum: it says which contexts are learned from, also for likelihood.
"""

import numpy as np
import torch

from sidgym.agents.checkpoint import load_policy
from sidgym.agents.config import RlConfig
from sidgym.agents.packed import packed_logp
from sidgym.agents.policy import Policy
from sidgym.agents.task import RlTask
from sidgym.envs.records import Episodes

LEAST = 1e-12
"""Smallest chance, so that every context can be drawn."""


@torch.no_grad()
def hit_chances(policy: Policy, contexts: Episodes, group: int, batch: int = 256) -> np.ndarray:
    """Chance (B,) float64 that ``group`` independent draws hold the target's SID, ``1 - (1 - pi(target))^group``."""
    codes = torch.from_numpy(policy.table.codes)[torch.from_numpy(np.maximum(contexts.target, 0))][:, None]
    parts = []
    for start in range(0, len(contexts), batch):
        rows = slice(start, start + batch)
        parts.append(packed_logp(policy, contexts.take(rows).trimmed(), codes[rows]).logp.double().sum((1, 2)))
    chance = torch.cat(parts).exp().clamp(max=1 - 1e-12)
    found = -torch.expm1(group * torch.log1p(-chance)).cpu().numpy()
    return np.where(contexts.target >= 0, found, 0.0)


def chances_of(task: RlTask, contexts: Episodes) -> np.ndarray | None:
    """``hit_chances`` of a task's contexts by the policy that it starts from; None without a curriculum."""
    if task.config.curriculum <= 0:
        return None
    return hit_chances(load_policy(task.policy).to(task.config.device).eval(), contexts, task.config.group_size)


def drawn_contexts(chances: np.ndarray, config: RlConfig, seed: int, step: int, further: int = 0) -> np.ndarray:
    """Rows of the contexts of iteration ``step``, slice ``further``: (contexts_per_step,) distinct ones.

    The largest of ``weight + Gumbel`` are a draw without replacement in proportion to ``exp(weight)``.
    """
    if len(chances) < config.contexts_per_step:
        raise ValueError(
            f"rl.curriculum draws {config.contexts_per_step} distinct contexts an iteration and there are "
            f"{len(chances)}; lower rl.contexts_per_step"
        )
    left = 1 - step / max(config.steps, 1)
    noise = np.random.default_rng([seed, step, further, 5]).gumbel(size=len(chances))
    keys = config.curriculum * max(left, 0.0) * np.log(np.maximum(chances, LEAST)) + noise
    return np.argsort(-keys, kind="stable")[: config.contexts_per_step]
