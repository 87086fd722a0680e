"""What the candidates of a group are, and what they earn, in each environment that a policy is trained in.

    next_item   G items, judged by the log (``SIDGym/NextItem-v0``)
    page        G pages of S distinct items, judged by the log (``SIDGym/Page-v0``)
    session     G pages of S distinct items for a simulated shopper; each is shown to a copy of the shopper, and the
                discounted rewards of the pages that follow count too (``SIDGym/Session-v0``)

Rewards are called as the environments call them: the group that a reward sees is the list that one user is shown, which
is the group of candidates for items and the page for pages. Left out: advantages and gradients (``update``).

A page is drawn item by item without replacement from the policy's distribution over SIDs, the law of Plackett and Luce:
``pi(page | u) = prod_s pi(i_s | u) / (1 - sum_(j < s) pi(i_j | u))``.

Symbols: B contexts, G candidates, S items a page, L levels. A candidate has W codes, L of an item or S * L of a page,
and V log-probabilities, one a code or one an item of the page.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sidgym.agents.audit import group_figures, is_constant
from sidgym.agents.config import RlConfig
from sidgym.agents.engine import Engine
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.reward_context import is_member
from sidgym.envs.rewards import RewardSum, Scores
from sidgym.envs.session_dynamics import Sessions, episodes_of, open_sessions, play_page, session_rewards, shown_page
from sidgym.envs.simulator_world import World

LEAST_LEFT = 1e-3
"""Smallest probability that is taken to be left for the rest of a page: below it the gradient would explode. How often
that happens is logged as ``rollout/page_exhausted``."""
TOTAL = ""
ROUNDING = 1e-6
"""Pages whose rewards differ by less than this share of what was added up have equal rewards."""


@dataclass(frozen=True)
class Candidates:
    """G scored candidates for each of B contexts."""

    contexts: Episodes  # B, what the candidates answer
    codes: np.ndarray  # (B, G, W) int64; vocabulary ids in mode "free"
    valid: np.ndarray  # (B, G) bool: there is something to learn from
    logp: np.ndarray  # (B, G, V) float32 behaviour log-probabilities
    total: np.ndarray  # (B, G) float32, what the candidate earns
    terms: dict[str, np.ndarray]  # name -> (B, G), what each term of the reward gives it, unweighted
    figures: dict[str, np.ndarray]  # name -> (B,)
    weight: np.ndarray  # (B, G) float32, factor of each candidate's policy term


Answer = Callable[[Episodes, Engine, RewardSum, RlConfig, int], Candidates]


def answer_items(episodes: Episodes, engine: Engine, reward: RewardSum, config: RlConfig, seed: int) -> Candidates:
    """Items as candidates. Drawn without the trie they are vocabulary ids, and one that is no SID is learned from,
    too."""
    rollouts = engine.rollout(episodes, config.group_size, config.mode, seed=seed, top_k=config.top_k)
    scores = reward.score(episodes, rollouts)
    codes, learnable = rollouts.codes, rollouts.valid
    if rollouts.tokens is not None:
        codes, learnable = rollouts.tokens, np.ones_like(rollouts.valid)
    figures = group_figures(scores, rollouts, episodes, reward.context.popularity)
    figures |= _rollout_figures(rollouts, episodes.targets[:, :1])
    if rollouts.importance is not None:
        figures["rollout/weight_mean"] = rollouts.importance.mean(axis=1, dtype=np.float64)
    return Candidates(episodes, codes, learnable, rollouts.logp, scores.total, scores.parts, figures, rollouts.weight)


def answer_pages(episodes: Episodes, engine: Engine, reward: RewardSum, config: RlConfig, seed: int) -> Candidates:
    """Pages as candidates, each worth the sum of its items' rewards on the logged page."""
    drawn = draw_pages(episodes, engine, config, seed)
    rows = np.repeat(np.arange(len(episodes)), config.group_size)
    contexts, pages = episodes.take(rows), as_pages(drawn, config.page_size)
    scores = reward.score(contexts, pages)
    return _page_candidates(episodes, drawn, pages, contexts, scores, _values(scores), reward, config)


def answer_sessions(episodes: Episodes, engine: Engine, reward: RewardSum, config: RlConfig, seed: int) -> Candidates:
    """Pages as candidates, each worth the discounted reward of the page and of those that follow it.

    ``episodes`` give numbers and the length of a history only: the shoppers are drawn from ``seed`` and the first
    number, see ``warm_pages`` pages of the logging recommender and then up to ``horizon`` pages of the policy, so that
    states come from all of a session; a page that would end it for good is taken back. G copies of a shopper are shown
    a page each and go their own ways for ``horizon`` pages more, which the policy draws. ``reward.context`` must hold
    the simulator's truth.
    """
    world = reward.context.require("truth", "rl.environment = 'session'").world
    rng = np.random.default_rng([seed, int(episodes.index[0]), 3])
    length, size = episodes.history.shape[1], config.page_size
    sessions = open_sessions(world, episodes.user, length, size, config.warm_pages, rng)
    sessions = _wander(world, sessions, episodes.index, engine, config, seed, rng)
    contexts = replace(episodes_of(sessions), index=episodes.index)
    drawn = draw_pages(contexts, engine, config, seed)
    pages = as_pages(drawn, size)
    copies = sessions.take(np.repeat(np.arange(len(sessions)), config.group_size))
    forks, played, scores = _show(world, copies, pages, reward, rng)
    value = _values(scores)
    # Each copy has a stream of its own, whatever chunk it is in.
    numbers = np.repeat(episodes.index, config.group_size) * config.group_size
    numbers += np.tile(np.arange(config.group_size), len(episodes))
    followed = _follow(world, forks, numbers, value, engine, reward, config, seed, rng)
    pages = shown_page(played.page, pages.codes)  # type: ignore[arg-type]
    batch = _page_candidates(contexts, drawn, pages, played, scores, value, reward, config)
    batch.figures["session/pages_followed"] = followed.reshape(len(contexts), -1).mean(axis=1)
    return batch


def _wander(
    world: World, sessions: Sessions, index: np.ndarray, engine: Engine, config: RlConfig, seed: int,
    rng: np.random.Generator,
) -> Sessions:  # fmt: skip
    """Sessions after 0 to ``horizon`` pages of the policy; one that would end for good stays where it was."""
    going = rng.integers(0, config.horizon + 1, size=len(sessions))
    for step in range(config.horizon):
        rows = np.flatnonzero(going > step)
        if len(rows) == 0:
            break
        contexts = replace(episodes_of(sessions.take(rows)), index=index[rows])
        pages = engine.rollout(contexts, config.page_size, "stochastic_beam", seed=_mixed(seed, 1, step))
        after, _ = play_page(world, sessions.take(rows), pages.item, rng)
        going[rows[after.done]] = 0
        sessions = sessions.put(rows[~after.done], after.take(~after.done))
    return sessions


def _show(
    world: World, sessions: Sessions, pages: Rollouts, reward: RewardSum, rng: np.random.Generator
) -> tuple[Sessions, Episodes, Scores]:
    """Plays pages (R, S) and scores them, by the same calls as ``SessionDynamics``."""
    after, played = play_page(world, sessions, pages.item, rng)
    return after, played, session_rewards(played, reward, codes=pages.codes)[1]


def _values(scores: Scores) -> dict[str, np.ndarray]:
    """What pages are worth, (R,) float64: in all (under ``TOTAL``) and by term."""
    return {name: part.sum(axis=1, dtype=np.float64) for name, part in {TOTAL: scores.total, **scores.parts}.items()}


def _follow(
    world: World, forks: Sessions, numbers: np.ndarray, value: dict[str, np.ndarray], engine: Engine,
    reward: RewardSum, config: RlConfig, seed: int, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Adds the discounted rewards of the pages that follow to each entry (R,) of ``value``; how many there were
    (R,)."""
    going = np.flatnonzero(~forks.done)
    followed = np.zeros(len(forks))
    sessions = forks.take(going)
    for step in range(1, config.horizon + 1):
        if len(going) == 0:
            break
        contexts = replace(episodes_of(sessions), index=numbers[going])
        pages = engine.rollout(contexts, config.page_size, "stochastic_beam", seed=_mixed(seed, 2, step))
        sessions, _, scores = _show(world, sessions, pages, reward, rng)
        for name, part in _values(scores).items():
            value[name][going] += config.discount**step * part
        followed[going] += 1
        going, sessions = going[~sessions.done], sessions.take(~sessions.done)
    return followed


def draw_pages(contexts: Episodes, engine: Engine, config: RlConfig, seed: int) -> Rollouts:
    """G pages of S distinct items for each context, one after another: (B, G * S)."""
    if config.normalise != "trie":
        raise ValueError(
            "pages are drawn from the distribution over SIDs, which rl.normalise = "
            f"{config.normalise!r} does not give; use trie"
        )
    size, lanes = config.page_size, config.group_size
    return engine.rollout(contexts, size, "stochastic_beam", seed=seed, lanes=lanes)


def as_pages(drawn: Rollouts, size: int) -> Rollouts:
    """Candidates (B, G * S) as groups of their own, (B * G, S), ranked as they stand on the page."""
    rows = drawn.valid.shape[0] * drawn.valid.shape[1] // size
    arrays = {name: getattr(drawn, name) for name in ("codes", "valid", "items")}
    pages = {name: value.reshape(rows, size, *value.shape[2:]) for name, value in arrays.items()}
    logp = np.zeros(pages["codes"].shape, dtype=np.float32)
    return replace(drawn, **pages, logp=logp, mode="given", importance=None)


def page_logp(logp: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the items of pages drawn without replacement: (..., S, L) of their codes to (..., S).

    Each item given those before it on the page, ``log pi(i_s) - log(1 - sum_(j < s) pi(i_j))``: ratios and KL terms are
    taken per item. What is left is taken to be at least ``LEAST_LEFT``.
    """
    whole = logp.sum(-1)
    return whole - torch.log(left_for_the_rest(whole).clamp_min(LEAST_LEFT))


def left_for_the_rest(score: torch.Tensor) -> torch.Tensor:
    """Probability that is left when each item of a page is drawn, from log-probabilities (..., S) of the items."""
    chance = score.exp()
    return 1 - (chance.cumsum(-1) - chance)


def _page_candidates(
    contexts: Episodes, drawn: Rollouts, pages: Rollouts, shown: Episodes, scores: Scores, value: dict[str, np.ndarray],
    reward: RewardSum, config: RlConfig,
) -> Candidates:  # fmt: skip
    """Pages as candidates, from what each is worth in all and by term, (B * G,)."""
    shape = (len(contexts), config.group_size)
    logp = torch.from_numpy(drawn.logp).unflatten(1, (shape[1], config.page_size))
    valid = np.asarray(pages.valid.all(axis=1)).reshape(shape)
    added = sum(abs(reward.weights[name]) * np.abs(part).sum(axis=1) for name, part in scores.parts.items())
    terms = {name: part.reshape(shape) for name, part in value.items()}
    total = _without_rounding(np.where(valid, terms.pop(TOTAL), 0.0), valid, np.reshape(added, (-1, shape[1])))
    by_page = group_figures(scores, pages, shown, reward.context.popularity)
    figures = {name: values.reshape(shape).mean(axis=1) for name, values in by_page.items()}
    if figures:
        figures["audit/all_zero"] = ((total == 0) | ~valid).all(axis=1).astype(np.float64)
        figures["audit/all_equal"] = is_constant(total, valid).astype(np.float64)
    figures |= _rollout_figures(drawn, shown.targets.reshape(shape[0], -1))
    spent = left_for_the_rest(logp.sum(-1)) < LEAST_LEFT
    figures["rollout/page_exhausted"] = spent.double().mean((1, 2)).numpy()
    return Candidates(
        contexts,
        drawn.codes.reshape(*shape, -1),
        valid,
        page_logp(logp).numpy(),
        total.astype(np.float32),
        {name: part.astype(np.float32) for name, part in terms.items()},
        figures,
        np.ones(shape, dtype=np.float32),
    )


def _without_rounding(total: np.ndarray, valid: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Totals (B, G), made equal in groups where they differ by no more than the rounding of what was ``added`` up.

    Terms that cancel leave some 1e-8 behind, which the standard deviation of a group would blow up to a signal.
    """
    high = np.where(valid, total, -np.inf).max(axis=1, keepdims=True)
    low = np.where(valid, total, np.inf).min(axis=1, keepdims=True)
    middle = np.round(np.where(valid.any(axis=1, keepdims=True), (high + low) / 2, 0.0), 6)
    return np.where(high - low <= ROUNDING * added.max(axis=1, keepdims=True), middle, total)


def _rollout_figures(rollouts: Rollouts, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """Distinct items, share of valid candidates, and whether any item is one of those ``wanted`` (B, M)."""
    items = np.sort(np.where(rollouts.valid, rollouts.item, PAD_ITEM), axis=1)
    fresh = np.ones_like(items, dtype=bool)
    fresh[:, 1:] = items[:, 1:] != items[:, :-1]
    hit = is_member(rollouts.items, wanted).any(axis=(1, 2))
    return {
        "rollout/unique_items": (fresh & (items != PAD_ITEM)).sum(axis=1).astype(np.float64),
        "rollout/hit": hit.astype(np.float64),
        "rollout/valid": rollouts.valid.mean(axis=1),
    }


def _mixed(seed: int, *numbers: int) -> int:
    """A seed of its own for each place where random numbers are drawn."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])


ANSWERS: dict[str, Answer] = {"next_item": answer_items, "page": answer_pages, "session": answer_sessions}
"""``RlConfig.environment`` -> how its candidates are drawn and scored."""
