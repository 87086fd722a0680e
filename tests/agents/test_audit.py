"""The audit: figures of groups against their definitions, a monitor that warns of what it says and nothing else, and a
planted reward that both catch."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.agents.audit import (
    CLEAR_FALL,
    EVALUATIONS,
    FIRED,
    STREAK,
    HackingMonitor,
    closing_warnings,
    correlation,
    group_figures,
    log_popularity,
    phase_mean,
)
from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import LogConfig, PolicyConfig, RewardConfig, RlConfig, SftConfig
from sidgym.agents.logging import MetricsLog, read_metrics
from sidgym.agents.policy import build_policy
from sidgym.agents.rl import RlTask, save_episodes, train_rl
from sidgym.agents.sft import train_sft
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.envs.splits import split, training_log
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import tfidf_svd
from sidgym.sid.tokenizers import build_table

POPULARITY = np.array([0, 1, 10, 100, 1000])


def scores(total, parts=None, components=None, diagnostics=None):
    total = np.asarray(total, dtype=np.float32)
    parts = {"term": total} if parts is None else parts
    return SimpleNamespace(total=total, parts=parts, components=components or {}, diagnostics=diagnostics or {})


def groups(items, targets, valid=None):
    items, targets = np.asarray(items), np.asarray(targets)
    batch, size = items.shape[:2]
    items = items[..., None] if items.ndim == 2 else items
    valid = np.ones((batch, size), dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    episodes = Episodes(np.arange(batch), np.arange(batch), np.zeros((batch, 1), dtype=np.int64), targets)
    codes, logp = np.zeros((batch, size, 2), dtype=np.int64), np.zeros((batch, size, 2), dtype=np.float32)
    return Rollouts(codes, valid, items, logp, "beam", "trie"), episodes


def test_shares_of_groups_without_signal():
    rollouts, episodes = groups(
        [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 4], [PAD_ITEM, PAD_ITEM, PAD_ITEM]],
        [[4, PAD_ITEM, PAD_ITEM], [2, PAD_ITEM, PAD_ITEM], [3, 1, 2], [1, 2, PAD_ITEM], [1, 2, 3]],
        [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]],
    )
    total = [[0, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5], [1, 1, -9], [-1, -1, -1]]
    found = group_figures(scores(total), rollouts, episodes)
    assert found["audit/all_zero"].tolist() == [1, 0, 0, 0, 1]
    assert found["audit/all_equal"].tolist() == [1, 0, 1, 1, 1], "an invalid candidate's value counts for nothing"
    assert found["audit/all_hit"].tolist() == [0, 0, 1, 1, 0], "nothing is hit by a group without valid candidates"
    assert "audit/popularity_correlation" not in found


def test_all_hit_counts_any_item_of_a_shared_sid_and_never_padding():
    rollouts, episodes = groups([[[1, 4], [2, PAD_ITEM]], [[1, PAD_ITEM], [3, PAD_ITEM]]], [[4, 2], [1, PAD_ITEM]])
    assert group_figures(scores([[1, 0], [1, 0]]), rollouts, episodes)["audit/all_hit"].tolist() == [1, 0]


def test_terms_components_and_what_a_gate_took():
    rollouts, episodes = groups([[1, 2, 3, 4]], [[1]], [[True, True, True, False]])
    raw, gated = np.array([[0.9, 0.6, 0.3, 77.0]]), np.array([[0.9, 0.0, 0.3, 77.0]])
    found = group_figures(
        scores(
            [[0.9, 0.9, 0.3, 0]],
            parts={"gated": np.array([[0.9, 0.9, 0.3, 0.0]]), "rule": np.array([[1.0, 0.0, 0.0, 0.0]])},
            components={"rule/exact": np.array([[0.5, 0.0, np.nan, 5.0]])},
            diagnostics={
                "gated/preference": raw,
                "gated/gated": gated,
                "gated/passed": np.array([[1, 0, 1, 1]]),
                "gated/relevance": np.array([[np.nan, 0.1, 0.3, 0.5]]),
            },
        ),
        rollouts,
        episodes,
    )
    expected = {
        "rewards/gated/mean": 0.7,
        "rewards/rule/mean": 1 / 3,
        "rewards/rule/exact/mean": 0.25,
        "audit/gated/raw": 0.6,
        "audit/gated/gated": 0.4,
        "audit/gated/gate_loss": 0.2,
        "audit/gated/pass_rate": 2 / 3,
        "audit/gated/relevance": 0.2,
    }
    assert {name: pytest.approx(value[0], abs=1e-6) for name, value in found.items() if name in expected} == expected


def test_without_a_reward_there_is_nothing_to_audit():
    rollouts, episodes = groups([[1, 2]], [[1]])
    assert group_figures(scores([[0, 0]], parts={}), rollouts, episodes, POPULARITY) == {}


def test_popularity_is_the_mean_of_logarithms_over_real_items():
    rollouts, _ = groups([[[1, 3], [2, PAD_ITEM], [PAD_ITEM, PAD_ITEM]]], [[1]])
    expected = [[(np.log(2) + np.log(101)) / 2, np.log(11), 0.0]]
    assert log_popularity(rollouts, POPULARITY) == pytest.approx(np.array(expected))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_correlation_is_pearsons_wherever_it_is_defined(seed, size, flat):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, 5, size))
    valid = rng.random((5, size)) < 0.7
    if flat:
        left = np.where(valid, 0.1, left)  # constant where it counts, anything elsewhere
    found = correlation(left, right, valid)
    assert np.isfinite(found).all()
    for row in range(5):
        a, b = left[row, valid[row]], right[row, valid[row]]
        usable = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
        assert found[row] == pytest.approx(np.corrcoef(a, b)[0, 1] if usable else 0.0, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_figure_is_finite_and_each_group_stands_alone(seed):
    rng = np.random.default_rng(seed)
    items = rng.integers(-1, 5, (6, 4, 2))
    rollouts, episodes = groups(items, rng.integers(-1, 5, (6, 3)), rng.random((6, 4)) < 0.6)
    total = rng.integers(0, 2, (6, 4))
    extra = {"term/passed": np.where(rng.random((6, 4)) < 0.2, np.nan, 1.0)}
    whole = group_figures(scores(total, diagnostics=extra), rollouts, episodes, POPULARITY)
    assert all(values.shape == (6,) and np.isfinite(values).all() for values in whole.values())
    assert (np.abs(whole["audit/popularity_correlation"]) <= 1).all()
    assert (whole["audit/all_zero"] <= whole["audit/all_equal"]).all()
    rows = slice(2, 4)
    part = group_figures(
        scores(total[rows], diagnostics={k: v[rows] for k, v in extra.items()}),
        rollouts.take(rows),
        episodes.take(rows),
        POPULARITY,
    )
    assert all(np.array_equal(part[name], values[rows]) for name, values in whole.items())


def contexts_of(mean, spread=0.0, count=50):
    """NDCG of each of ``count`` contexts with this mean; ``spread`` is the noise of a context."""
    noise = np.random.default_rng(int(1e6 * abs(mean)) if np.isfinite(mean) else 0).normal(size=count)
    return mean + spread * (noise - noise.mean())


def warnings_of(evaluations, spread=0.0):
    """(step, text) of every warning, each evaluation seen by a monitor restored from JSON."""
    monitor, out = HackingMonitor(), []
    for step, (reward, ndcg) in enumerate(evaluations):
        monitor = HackingMonitor.restored(json.loads(json.dumps(monitor.state(), allow_nan=False)))
        if text := monitor.observe(10 * step, reward, contexts_of(ndcg, spread)):
            out.append((10 * step, text))
    return out, monitor


PARTING = [(0.1 * k, 0.6 - 0.1 * k) for k in range(6)]


def test_three_evaluations_that_part_make_one_warning():
    found, monitor = warnings_of(PARTING)
    assert [step for step, _ in found] == [10 * EVALUATIONS]
    assert monitor.figures() == {STREAK: 5, "audit/ndcg_fall": pytest.approx(1e3), FIRED: 1.0}
    text = found[0][1]
    assert "0.0000 to 0.3000" in text
    assert "0.6000 to 0.3000" in text
    for remedy in ("gate", "anchor", "nll_weight", "kl_weight"):
        assert remedy in text


def test_a_fall_that_chance_explains_is_noted_and_not_warned_of():
    found, monitor = warnings_of(PARTING[: EVALUATIONS + 1], spread=2.0)
    assert [(step, text[:5]) for step, text in found] == [(30, "note:")]
    assert monitor.fired is None
    assert monitor.streak == EVALUATIONS
    first, last = (contexts_of(PARTING[k][1], 2.0) for k in (0, EVALUATIONS))
    expected = (first - last).mean() / ((first - last).std() / np.sqrt(len(first)))
    assert monitor.fall == pytest.approx(expected)
    assert 0 < monitor.fall < CLEAR_FALL
    assert monitor.figures()[FIRED] == 0.0


NAN = float("nan")


@pytest.mark.parametrize(
    ("evaluations", "streak", "warned"),
    [
        ([(0.0, 0.5), (0.1, 0.4), (0.2, 0.3)], 2, False),
        ([(0.0, 0.5), (0.1, 0.4), (0.2, 0.3), (0.3, 0.3)], 0, False),  # NDCG stands still
        ([(0.0, 0.5), (0.1, 0.4), (0.2, 0.3), (0.2, 0.2)], 0, False),  # the reward stands still
        ([(0.0, 0.5), (0.1, 0.4), (0.2, 0.45), (0.3, 0.4), (0.4, 0.3)], 2, False),  # the count begins anew
        ([(0.0, 0.5), (0.1, 0.4), (NAN, 0.1), (0.2, 0.3)], 2, False),  # passed over, neither way
        ([(0.0, 0.5), (0.1, 0.4), (9.0, NAN), (0.2, 0.3), (0.3, 0.2)], 3, True),
        ([(NAN, NAN)] * 5, 0, False),
        ([(0.0, 0.5), (0.1, 0.4), (float("inf"), 0.3), (0.2, 0.35)], 2, False),
    ],
)
def test_what_counts_and_what_does_not(evaluations, streak, warned):
    found, monitor = warnings_of(evaluations)
    assert monitor.streak == streak
    assert bool(found) == warned


def test_phases_pass_over_what_is_no_number():
    rows = [{"step": k, "x": float(k)} for k in range(40)] + [{"step": 40, "x": None}, {"step": 41, "x": NAN}, {}]
    assert phase_mean(rows, "x", last=False) == 1.5
    assert phase_mean(rows, "x", last=True) == 37.5
    assert phase_mean(rows[:3], "x", last=True) == 2.0
    assert phase_mean(rows, "y", last=True) is None


def test_the_closing_line_is_about_groups_without_a_signal():
    rows = [{"audit/all_equal": equal, "audit/all_zero": 0.5, "audit/all_hit": 0.0} for equal in (0.0, 0.95)]
    (text,) = closing_warnings(rows)
    assert "95% of the groups" in text
    assert "50% all zero" in text
    assert "hits" not in text
    assert closing_warnings(rows[:1]) == []
    assert closing_warnings([{"step": 0, "eval/reward": 1.0}]) == []


class PaysForPopular:
    """The planted preference: more for an item the oftener it was taken, whoever asks."""

    def __init__(self, context):
        worth = np.log1p(context.require("popularity", "the planted preference"))
        self.worth = worth / worth.max()

    def score(self, history, items):
        return np.where(items == PAD_ITEM, 0.0, self.worth[items])


SEED = 7
"""Settings below were chosen on seeds 100 to 109. There NDCG@10 fell by 0.12 to 0.18 without the gate, and the monitor
warned on every seed; behind the gate it fell by 0.008 at most, and there was no warning."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A small simulated store and a policy trained on its log: the folder and the validation contexts."""
    folder = tmp_path_factory.mktemp("shop")
    config = DataConfig(users=1500, items=120, rl_share=0.3, valid_share=0.25, test_share=0.05)
    dataset = load_dataset(config, SEED)
    splits = split(dataset, config, SEED)
    taken = training_log(dataset.interactions, splits).positives().item
    np.save(folder / "popularity.npy", np.bincount(taken, minlength=config.items))
    vectors = tfidf_svd(dataset.catalogue.texts(), 32, SEED)
    table = build_table(vectors, dataset.catalogue.ids, SidConfig(levels=2, codes=16, embedding_dim=32), SEED)
    model = PolicyConfig(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=1)
    policy = build_policy(model, table, SEED)
    train_sft(policy, splits.sft, splits.valid, SftConfig(epochs=10, lr=1e-2, eval_users=200), 20, SEED)
    save_policy(folder / "sft", policy, {})
    save_episodes(folder / "contexts.npz", splits.rl)
    return folder, splits.valid


def trained(shop, name, args):
    """The log of one RL run with the planted preference: (rows of validations, rows of steps)."""
    folder, valid = shop
    config = RlConfig(
        rewards=(RewardConfig("gated", args={"preference": "test_audit:PaysForPopular", **args}),),
        backend="torch",
        steps=60,
        contexts_per_step=32,
        chunk=32,
        group_size=8,
        lr=2e-4,
        warmup_steps=5,
        eval_every=10,
        eval_users=0,
        checkpoint_every=1000,
        select_by="last",
    )
    task = RlTask(
        str(folder / "sft"), str(folder / "contexts.npz"), SEED, config, popularity=str(folder / "popularity.npy")
    )
    out = folder / name
    # The text relevance is not asked for, and neither are its embeddings.
    train_rl(task, valid, out, lambda step: MetricsLog(out, LogConfig(wandb="disabled"), name, resume_from=step))
    rows = read_metrics(out / "metrics.jsonl")
    return [row for row in rows if STREAK in row], [row for row in rows if "reward" in row]


def test_a_planted_hack_is_caught(shop, capfd):
    judged, steps = trained(shop, "open", {"gate": False, "anchor": False, "relevance": "prefix"})
    assert judged[-1]["eval/reward"] > judged[0]["eval/reward"] + 0.01
    assert judged[-1]["eval/ndcg@10"] < judged[0]["eval/ndcg@10"] - 0.04
    assert judged[-1][FIRED] == 1.0
    assert capfd.readouterr().err.count("reward hacking") == 1
    assert min(row["audit/popularity_correlation"] for row in steps) > 0.9
    assert steps[-1]["audit/gated/pass_rate"] == 1.0


def test_the_same_preference_behind_the_gate_is_not_hacked(shop, capfd):
    """The gate lets through what the shopper has had before. NDCG@10 may fall by 0.03."""
    judged, steps = trained(shop, "gate", {"tau": 0.9, "relevance": "prefix"})
    assert 0.2 < np.mean([row["audit/gated/pass_rate"] for row in steps]) < 0.8, "the gate decides something"
    assert judged[-1]["eval/ndcg@10"] > judged[0]["eval/ndcg@10"] - 0.03
    assert not any(row[FIRED] for row in judged)
    assert "reward hacking" not in capfd.readouterr().err
    assert max(row["audit/popularity_correlation"] for row in steps) < 0.7
