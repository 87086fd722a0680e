"""Policy and learning: language model, constrained rollout, packed update, objectives, SFT, RL, checkpoints."""
