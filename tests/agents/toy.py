"""Small random catalogues, policies and contexts whose truth can be enumerated."""

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig
from sidgym.agents.policy import Policy, build_policy
from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.sid.table import SidTable

TINY = PolicyConfig(hidden_size=16, intermediate_size=32, layers=2, heads=2, kv_heads=1)


def toy_table(items: int = 30, sizes: tuple[int, ...] = (4, 5, 6), seed: int = 0, unique: bool = True) -> SidTable:
    """Random codes; distinct SIDs when ``unique`` (then ``items`` must fit)."""
    rng = np.random.default_rng(seed)
    total = int(np.prod(sizes))
    flat = rng.choice(total, size=items, replace=not unique)
    codes = np.stack(np.unravel_index(flat, sizes), axis=1).astype(np.int64)
    return SidTable(codes, tuple(sizes), np.array([f"item{i}" for i in range(items)]), {})


def toy_policy(table: SidTable, seed: int = 0, scale: float = 20.0, config: PolicyConfig = TINY) -> Policy:
    """Random weights, made sharper than an initialised model so that scores differ clearly."""
    policy = build_policy(config, table, seed)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.ndim == 2:
                weight.mul_(scale**0.5)
    return policy.eval()


def toy_episodes(batch: int, items: int, length: int = 5, targets: int = 1, seed: int = 0) -> Episodes:
    """Histories of unequal length (possibly empty), padded on the left."""
    rng = np.random.default_rng(seed)
    history = rng.integers(0, items, (batch, length))
    keep = rng.integers(0, length + 1, batch)
    history[np.arange(length)[None] < (length - keep)[:, None]] = PAD_ITEM
    return Episodes(
        index=np.arange(batch),
        user=np.arange(batch),
        history=history,
        targets=rng.integers(0, items, (batch, targets)),
    )


def naive_logp(policy: Policy, history: np.ndarray, codes: np.ndarray, normalise: str = "trie") -> torch.Tensor:
    """Log-probabilities (L,) of one SID after one history, one plain forward pass without any mask or cache."""
    from sidgym.agents.tokens import HISTORY_TOKEN

    tokens = [policy.tokenizer.convert_tokens_to_ids(HISTORY_TOKEN)]
    names = policy.table.tokens()
    for item in history[history != PAD_ITEM]:
        tokens += [
            policy.tokenizer.convert_tokens_to_ids(names[lv][c]) for lv, c in enumerate(policy.table.codes[item])
        ]
    path = [policy.tokenizer.convert_tokens_to_ids(names[lv][c]) for lv, c in enumerate(codes)]
    logits = policy.model(input_ids=torch.tensor([tokens + path])).logits[0].float()
    out = []
    for level, code in enumerate(codes):
        row = logits[len(tokens) - 1 + level]
        same = (policy.table.codes[:, :level] == codes[:level]).all(1)
        children = sorted(set(policy.table.codes[same, level].tolist()))
        ids = [policy.tokenizer.convert_tokens_to_ids(names[level][c]) for c in children]
        bottom = row[ids].logsumexp(0) if normalise == "trie" else row.logsumexp(0)
        out.append(row[policy.tokenizer.convert_tokens_to_ids(names[level][int(code)])] - bottom)
    return torch.stack(out)


def trl_length(prompts, completions, **columns):
    """A reward as TRL calls it: longer histories and even completions are better."""
    return [0.01 * len(prompt) + len(set(completion)) for prompt, completion in zip(prompts, completions)]


def verl_match(data_source, solution_str, ground_truth, extra_info=None):
    """A reward as verl calls it: characters in common from the start."""
    same = next((n for n, (a, b) in enumerate(zip(solution_str, ground_truth)) if a != b), len(ground_truth))
    return {"score": same / len(ground_truth), "exact": float(solution_str == ground_truth)}
