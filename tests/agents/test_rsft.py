"""RSFT: which pages are dropped, and that what is dropped stays in the histories without being learned."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from toy import TINY, toy_table

from sidgym.agents.config import RewardConfig, RsftConfig, SftConfig
from sidgym.agents.examples import ITEM, STEP
from sidgym.agents.mixture import check_sft
from sidgym.agents.policy import build_policy
from sidgym.agents.rsft import best_pages, continued, page_reward, page_scores
from sidgym.agents.sft import make_feed, train_sft
from sidgym.agents.tasks import TASKS, TaskContext, cuts
from sidgym.agents.templates import SILENT, Renderer
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.logged_pages import logged_pages
from sidgym.envs.records import CLICK, NEGATIVE, ORDER, PAD_ITEM
from sidgym.envs.rewards import RewardContext
from sidgym.envs.splits import split

CONFIG = DataConfig(users=60, items=20, history=4)
DATA = load_dataset(CONFIG, 0)
SPLITS = split(DATA, CONFIG, 0)
LOG = SPLITS.sft
PAGES = logged_pages(DATA.interactions, LOG, 4)
TABLE = toy_table(20)


def scores(*terms: RewardConfig) -> np.ndarray:
    config = RsftConfig(0.5, terms or RsftConfig().rewards)
    reward = page_reward(config, RewardContext(table=TABLE, truth=DATA.truth), PAGES)
    return page_scores(PAGES, reward, TABLE)


def test_a_pages_score_is_the_mean_reward_of_its_items():
    items, feedback = PAGES.shown
    worth = (feedback == CLICK) * 1.0 + (feedback == ORDER) * 2.0 - (feedback == NEGATIVE) * 1.0
    expected = (worth * (items != PAD_ITEM)).sum(axis=1) / (items != PAD_ITEM).sum(axis=1)
    np.testing.assert_allclose(scores(), expected, atol=1e-6)
    doubled = scores(RewardConfig("engagement", 2.0))
    np.testing.assert_allclose(doubled, 2 * expected, atol=1e-6)
    truth = scores(RewardConfig("true_preference"))
    assert ((truth > 0) & (truth < 1)).all()
    assert np.corrcoef(truth, expected)[0, 1] > 0.1


def test_the_worst_are_dropped_and_chance_decides_among_equals():
    found = scores()
    kept = best_pages(PAGES, found, 0.5, 0)
    assert len(kept) == len(PAGES) - int(0.5 * len(PAGES))
    chosen = np.isin(PAGES.begin, kept.begin)
    assert found[chosen].min() >= found[~chosen].max()
    assert np.array_equal(kept.begin, PAGES.begin[chosen])  # the order stays
    assert np.array_equal(kept.begin, best_pages(PAGES, found, 0.5, 0).begin)
    equal = [best_pages(PAGES, np.zeros(len(PAGES)), 0.5, seed).begin for seed in (0, 1)]
    assert not np.array_equal(*equal)
    with pytest.raises(ValueError, match="expected finite scores, got 1 others"):
        best_pages(PAGES, np.where(np.arange(len(found)) == 3, np.nan, found), 0.5, 0)


@pytest.mark.parametrize("task", ["retrieval", "page_wise", "titles_to_sid", "persona"])
def test_only_what_is_kept_is_asked_for(task):
    kept = best_pages(PAGES, scores(), 0.6, 0)
    given = TaskContext(LOG, DATA.catalogue, 4, pages=kept)
    whole = TASKS[task](replace(given, pages=PAGES))
    part = TASKS[task](given)
    assert 0 < part.loss.sum() < whole.loss.sum()
    if task == "persona":  # a choice that was dropped is named, and not to be said
        full = kept.covers(len(LOG.items))
        item = part.kind == ITEM
        covered = [set(LOG.items[a:b][full[a:b]].tolist()) for a, b in itertools.pairwise(LOG.offsets)]
        users = cuts(given, "persona").user
        row = {user: number for number, user in enumerate(LOG.user.tolist())}
        said = zip(part.ref[item & part.loss].tolist(), users[part.row[item & part.loss]].tolist())
        assert all(v in covered[row[user]] for v, user in said)
        assert (item & ~part.loss).any()
    if task == "retrieval":
        covered = kept.covers(len(LOG.items))
        assert part.loss.sum() == covered.sum()
        assert np.array_equal(
            np.bincount(part.ref[part.loss], minlength=20), np.bincount(LOG.items[covered], minlength=20)
        )
        assert (~part.loss & np.isin(part.kind, (ITEM, STEP))).any()  # what was dropped is still read


def test_the_share_is_rounded_down_as_written():
    kept = best_pages(PAGES.take(np.arange(100)), np.arange(100.0), 0.29, 0)
    assert len(kept) == 71  # 0.29 * 100 is 28.999...


def test_a_task_that_nothing_is_left_of_says_what_dropped_it():
    none = PAGES.take(np.flatnonzero(PAGES.begin == LOG.offsets[0]))  # a user's first page: nothing stands before it
    feed = make_feed(build_policy(TINY, TABLE, 0), LOG, SftConfig(tasks=("page_wise",)), 4, 0, pages=none)
    with pytest.raises(ValueError, match=r"'page_wise' has no example .* or lower sft\.rsft\.drop"):
        feed.epoch(0)


def test_training_goes_on_with_what_is_left():
    kept = best_pages(PAGES, scores(), 0.5, 0)
    config = SftConfig(epochs=1, batch=16, eval_users=10, token_warmup_steps=3, rsft=RsftConfig(0.5, epochs=2, lr=1e-3))
    after = continued(config)
    assert (after.packed, after.epochs, after.lr, after.token_warmup_steps, after.rsft.drop) == (True, 2, 1e-3, 0, 0)
    policy = build_policy(TINY, TABLE, 0)
    train_sft(policy, LOG, SPLITS.valid, config, 4, 0)
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    result = train_sft(policy, LOG, SPLITS.valid, after, 4, 0, pages=kept)
    assert len(result.history) == 2
    assert any(not value.equal(before[name]) for name, value in policy.model.state_dict().items())
    feed = make_feed(policy, LOG, after, 4, 0, pages=kept)
    learned = sum(int(feed.counts(batch)[1].sum()) for batch in feed.epoch(0))
    covered = TaskContext(LOG, history=4, pages=kept)
    assert learned == (Renderer.of(policy).render(TASKS["retrieval"](covered)).loss != SILENT).sum()


@pytest.mark.parametrize(
    ("rsft", "message"),
    [
        (RsftConfig(1.0), r"a share in \[0, 1\)"),
        (RsftConfig(0.5, ()), "at least one reward"),
        (RsftConfig(0.5, (RewardConfig("format"),)), "judges a decoding"),
        (RsftConfig(0.5, (RewardConfig("gated"),)), "needs the preference model"),
        (RsftConfig(0.5, (RewardConfig("nothing"),)), "unknown reward"),
    ],
)
def test_settings_that_cannot_work_are_refused(rsft, message):
    with pytest.raises(ValueError, match=message):
        check_sft(SftConfig(rsft=rsft))
