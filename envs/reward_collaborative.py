"""MiniOneRec's collaborative reward: what a model of what comes next says of the candidate.

The paper took the logit of a frozen SASRec and found that it is gamed: the reward rises while accuracy falls. It stands
here to show that (``sidgym bench rewards``) and is no entry of ``REWARDS``: name it
``sidgym.envs.reward_collaborative:Collaborative``, with ``preference.kind = "sasrec"``. Left out: the model
(``preference.sasrec``), a gate and an anchor, which ``reward_preference`` has.

Symbols as in ``records``: B contexts, G candidates a group, C items a SID.
"""

import numpy as np

from sidgym.envs.records import Episodes, Rollouts
from sidgym.envs.reward_context import RewardContext, mean_over_items

NEAREST = 1e-6
"""Scores are kept this far from 0 and 1, so that their logits stay finite in float32."""


class Collaborative:
    """Log odds of the preference model's score, the mean over the items of a shared SID. (B, G) float32.

    With Platt's calibration, the default of ``sasrec``, these are an increasing linear function of the network's logit
    for the candidate, so that the advantages of a group, standardised, are those of the logit itself (MiniOneRec
    section 3.4.2 and its ablation). In the paper it replaces the rank term; its released code uses it alone, as here.
    """

    requires = ("preference",)

    def __init__(self, context: RewardContext) -> None:
        self.preference = context.require("preference", "collaborative")

    def __call__(self, episodes: Episodes, rollouts: Rollouts) -> np.ndarray:
        """(B, G) float32; 0 means even odds. Raises ``ValueError`` for scores of NaN at items of valid candidates."""
        shape = rollouts.items.shape
        items = rollouts.items.reshape(shape[0], -1)
        score = np.asarray(self.preference.score(episodes.history, items), dtype=np.float64).reshape(shape)
        odds = np.clip(score, NEAREST, 1.0 - NEAREST)
        value = mean_over_items(np.log(odds) - np.log1p(-odds), rollouts.items)
        wrong = np.argwhere(np.isnan(value) & rollouts.valid)
        if len(wrong):
            row, candidate = wrong[0].tolist()
            raise ValueError(
                f"reward 'collaborative': the score of candidate {candidate} of context {row} is nan; expected a "
                "number for every item, so fit the preference model again"
            )
        return np.nan_to_num(value).astype(np.float32)
