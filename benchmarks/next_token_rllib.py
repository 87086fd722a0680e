"""RLlib's PPO with RLlib's own action-masking module learns in ``NextToken-v0``.

    python benchmarks/next_token_rllib.py [--quick] [--seeds 0 1 2] [--out FILE]

Nothing here is ours but the environment: algorithm, connectors and module come with Ray. Trains on
``next_token_store.small_store`` and compares with the exact oracle. The last line printed is one JSON object.
"""

from typing import Any

import numpy as np

from sidgym.benchmarks.next_token_store import make_env, play, report

STEPS, QUICK_STEPS = 240_000, 16_000
ENVIRONMENTS = 32
BATCH = 4096


def train(seed: int, steps: int) -> dict[str, Any]:
    """A policy trained for ``steps`` code choices, judged on every context."""
    import ray
    import torch
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
    from ray.tune.registry import register_env

    torch.set_num_threads(1)
    register_env("next_token", lambda config: make_env(seed))
    config = (
        PPOConfig()
        .environment("next_token")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVIRONMENTS, rollout_fragment_length="auto")
        .learners(num_learners=0)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=ActionMaskingTorchRLModule,
                model_config={"fcnet_hiddens": [64, 64], "vf_share_layers": False},
            )
        )
        .training(
            train_batch_size_per_learner=BATCH,
            minibatch_size=256,
            num_epochs=10,
            lr=1e-3,
            gamma=1.0,
            entropy_coeff=0.02,
            vf_loss_coeff=0.5,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
    algorithm = config.build_algo()
    try:
        for _ in range(steps // BATCH):
            algorithm.train()
        module: Any = algorithm.get_module()

        def act(observations: dict[str, np.ndarray]) -> np.ndarray:
            batch = {"obs": {name: torch.from_numpy(value) for name, value in observations.items()}}
            with torch.no_grad():
                logits = module.forward_inference(batch)["action_dist_inputs"]
            return logits.argmax(-1).numpy()

        return play(act, seed)
    finally:
        algorithm.stop()
        ray.shutdown()


if __name__ == "__main__":
    report("next_token_rllib", "RLlib PPO with ActionMaskingTorchRLModule", train, STEPS, QUICK_STEPS, ("ray",))
