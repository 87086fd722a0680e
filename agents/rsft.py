"""Rejection-sampling fine-tuning (OneRec-V1's RSFT): supervised training goes on without the worst logged pages.

Each page of the log is scored by a reward, item by item, as if the logging recommender had drawn it: its score is the
mean over its items. Of the pages that something was chosen on, a share, those of the lowest scores, is dropped; what
was chosen on them stays in the histories of the pages that follow, and which item it was is not learned any more. What
is counted over a whole history (a persona's favourite category, profiles of ``categories``) counts it still. Of pages
with one score chance decides, by seed. Pages that nothing came of are in no example and not counted. Left out: training
(``sft``), which reads the pages that are left.

Symbols: Q pages, S places a page, L levels.
"""

from dataclasses import replace

import numpy as np

from sidgym.agents.config import RsftConfig, SftConfig
from sidgym.envs.logged_pages import LoggedPages
from sidgym.envs.records import PAD_ITEM, Rollouts
from sidgym.envs.rewards import (
    RewardContext,
    RewardSum,
    check_page_reward,
    claims,
    find_reward,
    required_fields,
    required_mode,
)
from sidgym.sid.table import SidTable

CHUNK = 4096
"""Pages scored at once."""


def check_rsft(config: RsftConfig) -> None:
    """Refuses by ``ValueError`` settings that cannot work, before anything is read; nothing where RSFT is off."""
    if not 0 <= config.drop < 1:
        raise ValueError(f"sft.rsft.drop: expected a share in [0, 1) of the pages, got {config.drop}")
    if config.drop == 0:
        return
    if not config.rewards:
        raise ValueError("sft.rsft.rewards: expected at least one reward to tell good pages from bad ones, got none")
    for term in config.rewards:
        entry = find_reward(term)
        if required_mode(entry) or claims(entry, "constant_sum"):
            why = "shares out a fixed amount on every page" if claims(entry, "constant_sum") else "judges a decoding"
            raise ValueError(f"sft.rsft.rewards: {term.name!r} {why} and says nothing of a logged page; drop it")
        if "preference" in required_fields(term):
            raise ValueError(
                f"sft.rsft.rewards: {term.name!r} needs the preference model, which is fitted in a stage beside SFT; "
                "use a reward that reads the log, such as engagement"
            )


def page_reward(config: RsftConfig, context: RewardContext, pages: LoggedPages) -> RewardSum:
    """The reward that ``config`` names, for pages of this width. Raises what ``RewardSum`` does."""
    reward = RewardSum(config.rewards, context, pages.shown[0].shape[1])
    check_page_reward(reward)
    return reward


def page_scores(pages: LoggedPages, reward: RewardSum, table: SidTable) -> np.ndarray:
    """Mean reward (Q,) float64 of the items of each page. Raises ``RewardError`` for values that are not finite."""
    shown, _ = pages.shown
    scores = []
    for start in range(0, len(pages), CHUNK):
        rows = slice(start, start + CHUNK)
        items = shown[rows]
        valid = items != PAD_ITEM
        drawn = Rollouts(
            codes=table.codes[np.where(valid, items, 0)],
            valid=valid,
            items=items[..., None],
            logp=np.zeros((*items.shape, table.codes.shape[1]), dtype=np.float32),
            mode="logged",
            normalise="trie",
        )
        total, _ = reward(pages.contexts.take(rows), drawn)
        scores.append(np.where(valid, total, 0.0).sum(axis=1) / valid.sum(axis=1))
    return np.concatenate(scores) if scores else np.zeros(0)


def best_pages(pages: LoggedPages, scores: np.ndarray, drop: float, seed: int) -> LoggedPages:
    """``pages`` without the ``drop`` share (rounded down) of the lowest ``scores`` (Q,), in their order.

    Raises ``ValueError`` for a score that is not finite and where no page would be left.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"best_pages: expected finite scores, got {np.count_nonzero(~np.isfinite(scores))} others")
    chance = np.random.default_rng([seed, 11]).random(len(scores))
    order = np.lexsort((chance, scores))
    kept = np.sort(order[int(drop * len(scores) + 1e-9) :])
    if not len(kept):
        raise ValueError(f"best_pages: nothing is left of {len(scores)} pages; lower sft.rsft.drop or add users")
    return pages.take(kept)


def continued(config: SftConfig) -> SftConfig:
    """The settings that training goes on with: RSFT's epochs and learning rate, and passes over whole examples, of
    which parts are not supervised. It writes no checkpoints: a killed RSFT begins anew behind the warm-up."""
    rsft = config.rsft
    return replace(
        config,
        packed=True,
        epochs=rsft.epochs,
        lr=rsft.lr,
        token_warmup_steps=0,
        checkpoint_every=0,
        rsft=replace(rsft, drop=0.0),
    )


def dropped_table(scores: np.ndarray, kept: int) -> dict[str, float]:
    """What was dropped, as figures for the log."""
    return {"rsft/pages": len(scores), "rsft/kept": kept, "rsft/mean_reward": float(scores.mean())}
