"""What the honest test of a reward measures: agreement with the truth, distance from the start, arms, differences."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sidgym.agents.config import PolicyConfig, RlConfig
from sidgym.agents.packed import packed_scores
from sidgym.agents.policy import build_policy
from sidgym.benchmarks import preference_parts, preference_tables
from sidgym.benchmarks.preference import ARMS, FULL, PAIRS, QUICK, WEAK, arm_figures, differences, models, over_seeds
from sidgym.benchmarks.preference_held import Held, correlations, divergence, gate_price, on_logged_pages
from sidgym.benchmarks.preference_parts import Model, since
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.gate import Gate
from sidgym.envs.preference import PREFERENCES, PreferenceData
from sidgym.envs.records import CLICK, PAD_ITEM, Episodes
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.splits import split
from sidgym.sid.config import SidConfig
from sidgym.sid.tokenizers import build_table

HISTORY = 6


@pytest.fixture(scope="module")
def store():
    return load_dataset(DataConfig(users=40, items=60), 3)


def test_a_reward_that_is_the_truth_agrees_with_it_and_padding_counts_nothing():
    true = np.random.default_rng(0).random((20, 5))
    real = np.ones_like(true, dtype=bool)
    real[:, 4] = False
    scores = np.where(real, 0.1 + 0.5 * true, 1 - true)
    assert correlations(scores, true, real) == pytest.approx({"pearson": 1, "spearman": 1, "within": 1})
    assert correlations(scores, true, ~real | real)["pearson"] < 0.99


def test_agreement_inside_contexts_is_told_apart_from_that_between_them():
    """A model that only knows who clicks a lot helps no group to choose."""
    true = np.linspace(0, 1, 10)[:, None] + np.array([[0.0, 0.01, 0.02]])
    known = np.broadcast_to(true.mean(axis=1, keepdims=True), true.shape)
    found = correlations(known + np.array([[0.002, 0.001, 0.0]]), true, np.ones_like(true, dtype=bool))
    assert found["pearson"] > 0.99
    assert found["within"] == pytest.approx(-1)


def test_a_gate_is_judged_by_what_it_costs(store):
    """One that lets pass all of an item's own history, and nothing else."""
    splits = split(store, DataConfig(users=40, items=60), 3)
    episodes, count = splits.rl, 60

    def repeats(history, items):
        return (items[:, :, None] == history[:, None, :]).any(axis=2).astype(np.float32)

    context = RewardContext(embeddings=np.ones((count, 1)))
    held = Held(episodes, store.truth, {})
    found = gate_price(held, context, repeats, 0.5, Gate("text", {"text": 0.1}))
    shares = [len(set(row) - {PAD_ITEM}) / count for row in episodes.history.tolist()]
    assert found["catalogue"] == pytest.approx(np.mean(shares))
    again = [target in row for row, target in zip(episodes.history.tolist(), episodes.target.tolist())]
    assert found["targets"] == pytest.approx(np.mean(again))
    best = [np.argsort(-store.truth.preference(event)[0], kind="stable")[:10] for event in episodes.event[:, None]]
    known = [np.isin(items, row).mean() for items, row in zip(best, episodes.history.tolist())]
    assert found["best_ten"] == pytest.approx(np.mean(known))
    assert gate_price(held, context, "text", "auto", Gate("text", {"text": 0.1}))["catalogue"] == 1


def test_weak_models_learn_from_users_of_their_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        preference_parts, "fit_preference", lambda kind, data, seed, **settings: drawn.append(data.users)
    )
    log = load_dataset(DataConfig(users=40, items=60), 3).interactions
    data = PreferenceData(log, np.arange(3, 40), categories=np.zeros(60, dtype=np.int64))
    for draw in range(3):
        Model("din", users=10, draw=draw).fit(data, HISTORY, seed=0)
    Model("din").fit(data, HISTORY, seed=0)
    assert [len(users) for users in drawn] == [10, 10, 10, 37]
    assert len(set(np.concatenate(drawn[:3]).tolist())) == 30
    assert all(np.isin(users, data.users).all() for users in drawn)


def test_a_constant_score_agrees_with_nothing():
    true = np.random.default_rng(0).random((4, 3))
    found = correlations(np.full((4, 3), 0.5), true, np.ones((4, 3), dtype=bool))
    assert found == {"pearson": 0, "spearman": 0, "within": 0}


class Known:
    """Scores that were worked out beforehand, by history and page."""

    def __init__(self, values):
        self.values = values

    def score(self, history, items):
        return np.array([self.values[tuple(h), tuple(i)] for h, i in zip(history.tolist(), items.tolist())])


def test_logged_pages_are_judged_by_the_taste_at_the_page(store):
    """A model that says the truth of each page, found row by row, agrees perfectly; so pages and tastes belong
    together. At the first place a click happens with that probability."""
    log, users, values = store.interactions, np.arange(5, 35), {}
    for user in users:
        rows, past = np.flatnonzero(log.user == user), []
        for page in np.unique(log.page[rows]):
            shown = rows[log.page[rows] == page]
            history = tuple([PAD_ITEM] * HISTORY + past)[-HISTORY:]
            true = store.truth.preference(shown[:1], log.item[shown][None])[0]
            values[history, tuple(log.item[shown].tolist())] = true
            past += log.item[shown[log.feedback[shown] >= CLICK]].tolist()
    found = on_logged_pages(Known(values), log, store.truth, users, HISTORY)
    assert found["logged"]["pearson"] > 0.999  # two pages may share history and items
    assert found["clicks"]["log_loss"] < found["clicks"]["base_log_loss"]
    assert found["clicks"]["auc"] > 0.6
    assert 100 < found["pages"] <= len(values)


@pytest.fixture(scope="module")
def policies():
    names = np.array([f"item{i}" for i in range(12)])
    table = build_table(np.zeros((12, 1)), names, SidConfig(tokenizer="random", levels=2, codes=4), 0)
    shape = PolicyConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2, kv_heads=1)
    return [build_policy(shape, table, seed).eval() for seed in (0, 1)]


def test_the_divergence_is_that_of_whole_sids(policies):
    policy, start = policies
    with torch.no_grad():  # far apart, so that a sum over half of the codes would be seen
        for weight in policy.model.parameters():
            weight.mul_(3)
    rng = np.random.default_rng(0)
    contexts = Episodes(np.arange(6), np.arange(6), rng.integers(0, 12, (6, 4)), rng.integers(0, 12, (6, 1)))
    codes = torch.from_numpy(policy.table.codes)[None].expand(6, -1, -1)
    with torch.no_grad():
        mine, other = (packed_scores(p, contexts, codes, ("trie",))[0].logp.sum(-1).double() for p in (policy, start))
    exact = float((mine.exp() * (mine - other)).sum(1).mean())
    assert float(mine.exp().sum(1).mean()) == pytest.approx(1, abs=1e-5)
    assert exact > 0.05
    assert divergence(policy, start, contexts, draws=600, batch=4) == pytest.approx(exact, rel=0.15)
    assert divergence(start, start, contexts) == pytest.approx(0, abs=1e-5)


def test_arms_differ_in_what_they_say_and_in_nothing_else():
    rl = RlConfig(kl_weight=0.0)
    gated = ARMS["gated"].config(rl)
    free = {"rewards", "nll_weight", "lr", "objective"}
    for name, arm in ARMS.items():
        config = arm.config(rl)
        assert {key for key in vars(config) if getattr(config, key) != getattr(gated, key)} <= free, name
        assert config.kl_weight == 0, "the distance is measured and not held"
        if arm.model:
            args = dict(config.rewards[0].args)
            assert (args.pop("relevance"), args.pop("tau")) == (
                ("prefix", 0.375) if "prefix" in name else ("text", "auto")
            )
            assert args == {"gate": "ungated" not in name, "anchor": arm.anchor}, name
            assert arm.model == (name.split()[0] if name.startswith((WEAK, "sasrec")) else "din")
            assert arm.anchor == (not name.endswith(("bare", "no anchor"))), name
            assert (arm.nll == 0) == name.endswith(("no nll", "bare")), name
            assert arm.lr == ARMS["gated"].lr, name
    assert not ARMS["nll only"].config(rl).rewards
    assert {name for pair in PAIRS for name in pair} <= set(ARMS)


def test_settings_of_both_runs():
    for setting in (FULL, QUICK):
        assert {model.kind for model in setting.models.values()} == set(PREFERENCES)
        assert {arm.model for arm in ARMS.values()} - {""} <= set(setting.models)
        weak, other = setting.models[WEAK], setting.models[f"{WEAK}_other"]
        assert (weak.kind, weak.users, weak.settings) == (other.kind, other.users, other.settings)
        assert weak.draw != other.draw
        assert setting.users == "test"
        assert setting.rl.backend == "torch"
        steps = setting.steps()
        assert (steps[0], steps[-1]) == (0, setting.rl.steps)
    assert replace(FULL, checkpoints=(5, 10**9)).steps() == [0, 5, FULL.rl.steps]


def seed_of(offset, rng):
    """What an arm leaves behind at one seed, with a known gain."""
    base = rng.random(8)
    start = {"true@10": base.tolist(), "learned/din": base.tolist()}
    end = {"true@10": (base + offset).tolist(), "learned/din": (base - offset).tolist()}
    curve = [{"step": 0, "kl": 0.0}, {"step": 2, "kl": offset}]
    agreement = {"din": {"pearson": offset}}
    part = {"curve": curve, "per_user": end, "generated": agreement, "share_of_iteration": 0.1, "remembered": None}
    told = {"din": {"own": {"ece": offset, "negatives": "sampled"}, "gate": {"pass_rate": {"random": None}}}}
    return part, {"per_user": start, "generated": {"din": {"pearson": 0.0}}, "models": told}


def test_differences_are_paired_over_the_users_of_all_seeds():
    rng = np.random.default_rng(0)
    parts, begun = zip(*(seed_of(offset, rng) for offset in (0.1, 0.3)))
    figures = arm_figures(parts, begun)
    gain = figures["minus_start"]["true@10"]
    assert gain["mean"] == pytest.approx(0.2)
    assert gain["seeds"] == pytest.approx([0.1, 0.3])
    assert 0.1 <= gain["low"] < 0.2 < gain["high"] <= 0.3
    assert figures["minus_start"]["learned/din"]["high"] < 0
    assert figures["curve"][-1] == pytest.approx({"step": 2, "kl": 0.2})
    assert figures["remembered"] is None
    assert differences(parts, parts)["true@10"] == {"mean": 0, "low": 0, "high": 0, "seeds": [0, 0]}
    told = models(begun, {"gated": parts})["din"]
    assert told["own"] == {"ece": {"mean": pytest.approx(0.2), "seeds": [0.1, 0.3]}, "negatives": "sampled"}
    assert told["gate"]["pass_rate"]["random"] is None
    assert told["generated"]["start"]["pearson"]["mean"] == 0
    assert told["generated"]["gated"]["pearson"]["seeds"] == [0.1, 0.3]


def test_what_a_seed_lacks_has_no_mean():
    assert over_seeds([1.0, None]) is None
    assert since([]) == {}
    assert since([{"reward": 1.0}, {"reward": 3.0}]) == {"train/reward": 2.0}


def interval(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "seeds": [mean]}


def made_up():
    """A result with the fields that the tables read."""
    means = {"mean": 0.5, "seeds": [0.5]}
    agreement = {"pearson": means, "spearman": means, "within": means}
    gate = {"relevance": "text", "tau": means, "catalogue": means, "targets": means, "best_ten": means}
    arm_of = {name: vars(arm) for name, arm in ARMS.items() if name in ("gated", "ungated", "nll only")}
    gained = {figure: interval(0.02) for figure in ("true@10", "ndcg@10", "hr@50", "learned/din", "learned/pscore")}
    curve = [
        {"step": n, "true@10": 0.1, "learned/din": 0.2, "learned/pscore": 0.2, "ndcg@10": 0.3, "passed": 0.9, "kl": n}
        for n in (0, 3)
    ]
    one = {"clicks": {"auc": means}, "own": {"ece": means}, "logged": agreement, "share_of_iteration": means}
    return {
        "models": {"din": {**one, "generated": {"start": agreement, "gated": agreement}}},
        "start": {name: means for name in ("true@10", "ndcg@10", "hr@50", "learned/din", "learned/pscore")},
        "arms": {name: {**arm, "minus_start": gained, "curve": curve} for name, arm in arm_of.items()},
        "pairs": {"ungated - gated": {k: interval(-0.03) for k in gained}, "gated - nll only": gained},
        "gates": {"text": gate},
        "settings": {"rl": {"steps": 3}, "models": {"din": {"users": 0}}},
        "command": "c", "contexts": 1000, "seeds": [0], "machine": "m",
    }  # fmt: skip


def test_tables_and_the_picture_say_what_the_result_says(monkeypatch, tmp_path):
    (tmp_path / "preference.json").write_text(json.dumps(made_up()))
    monkeypatch.setattr(preference_tables, "RESULTS", tmp_path)
    assert set(preference_tables.TOLD) <= {f"{mine} - {other}" for mine, other in PAIRS}
    monkeypatch.setattr(preference_tables, "TOLD", tuple(made_up()["pairs"]))
    text = preference_tables.results()
    assert "| SFT, where all begin | 0.500 | 0.500 `din` |" in text
    assert "| gated | +0.020 [+0.010, +0.030] | +0.020 [+0.010, +0.030] | +0.020 [+0.010, +0.030] |" in text
    assert "| nll only (lr 0.0001) | +0.020 [+0.010, +0.030] | – | – |" in text
    assert "| `text` > 0.50 | 50 % | 50 % | 50 % |" in text
    assert "- ungated over gated: true preference -0.030 [-0.040, -0.020]; learned -0.030" in text
    assert "gated over nll only: true preference +0.020 [+0.010, +0.030]; NDCG@10" in text
    assert "1,000 test users" in text
    for name in ("a.svg", "b.svg"):
        preference_tables.draw(made_up(), tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in drawn
