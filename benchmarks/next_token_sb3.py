"""Stable-Baselines3's MaskablePPO, as its authors wrote it, learns in ``NextToken-v0``.

    python benchmarks/next_token_sb3.py [--quick] [--seeds 0 1 2] [--out FILE]

Trains on ``next_token_store.small_store`` and compares with the exact oracle. Needs ``sb3-contrib``, which only this
script and its test use. The last line printed is one JSON object.
"""

from typing import Any

import numpy as np

from sidgym.benchmarks.next_token_store import make_env, play, report

STEPS, QUICK_STEPS = 240_000, 16_000
ENVIRONMENTS = 32


def train(seed: int, steps: int) -> dict[str, Any]:
    """A policy trained for ``steps`` code choices, judged on every context."""
    import torch
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    env = DummyVecEnv([lambda: make_env(seed)] * ENVIRONMENTS)
    agent = MaskablePPO(
        "MultiInputPolicy",
        env,
        n_steps=128,
        batch_size=256,
        n_epochs=10,
        learning_rate=1e-3,
        gamma=1.0,
        ent_coef=0.02,
        seed=seed,
        device="cpu",
    )
    agent.learn(total_timesteps=steps)

    def act(observations: dict[str, np.ndarray]) -> np.ndarray:
        masks = observations["action_mask"] > 0
        return agent.predict(observations, deterministic=True, action_masks=masks)[0]

    return play(act, seed)


if __name__ == "__main__":
    report("next_token_sb3", "sb3-contrib MaskablePPO", train, STEPS, QUICK_STEPS, ("sb3-contrib", "stable-baselines3"))
