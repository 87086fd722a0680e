"""What candidates earn in each environment, and that a policy learns what is known to be best there."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.advantages import group_standardised
from sidgym.agents.candidates import ANSWERS, Candidates, as_pages, draw_pages, page_logp
from sidgym.agents.config import PolicyConfig, RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.evaluate import PolicyPages
from sidgym.agents.rl import session_return
from sidgym.agents.update import advantages, apply_gradients, group_loss, make_optimizer, rollout_groups, step_seed
from sidgym.envs.logged import PageDynamics
from sidgym.envs.oracle import percent_of_oracle
from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.envs.rewards import RewardContext, RewardSum
from sidgym.envs.session_dynamics import open_sessions, play_page, session_rewards
from sidgym.envs.session_oracle import AGENTS, judge_sessions
from sidgym.envs.simulator import SimulatorConfig, simulate
from sidgym.sid.table import SidTable

POLICY = PolicyConfig(hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=1)
PAGE = RlConfig(
    rewards=(RewardConfig("rule", 1.0, {"any_positive": True}),),
    environment="page",
    page_size=3,
    group_size=8,
    lr=3e-3,
    warmup_steps=0,
    chunk=4,
)
SESSION = replace(
    PAGE, rewards=(RewardConfig("engagement"),), environment="session", chunk=16, lr=2e-3, horizon=3, warm_pages=2
)


def page_world(seed=1, items=12):
    table = toy_table(items, (3, 4), seed=seed)
    policy = toy_policy(table, seed=seed, scale=2.0)
    episodes = toy_episodes(8, items, targets=3, seed=2)
    reward = RewardSum(PAGE.rewards, RewardContext(table=table), PAGE.page_size)
    return policy, episodes, reward, TorchEngine(policy, PAGE.chunk)


def session_world(seed=0):
    """24 items on 4 shelves of 2 styles, whose SIDs are kind and number; shoppers as contexts."""
    store = simulate(
        SimulatorConfig(
            users=4, items=24, departments=2, shelves_per_department=2, styles=2, page_size=3, base=-3.0, sessions=3,
            seed=seed,
        )
    )  # fmt: skip
    world = store.truth.world
    kind = world.shelf * 2 + world.style
    number = np.array([(kind[:item] == kind[item]).sum() for item in range(24)])
    table = SidTable(np.stack([kind, number], 1), (8, 24), store.catalogue.ids, {})
    policy = toy_policy(table, seed=1, scale=2.0, config=POLICY)
    reward = RewardSum(SESSION.rewards, RewardContext(table=table, truth=store.truth), SESSION.page_size)
    shoppers = Episodes(np.arange(16), np.arange(16), np.full((16, 6), PAD_ITEM), np.full((16, 1), PAD_ITEM))
    return policy, shoppers, reward, TorchEngine(policy, SESSION.chunk), world


def train(policy, contexts, reward, engine, config, steps):
    """Plain policy gradients; the mean reward of each step."""
    optimizer, means = make_optimizer(policy, config), []
    for step in range(steps):
        batch, stats = rollout_groups(contexts, engine, reward, config, step_seed(0, step))
        optimizer.zero_grad()
        loss, _ = group_loss(policy, batch, config)
        loss.backward()
        apply_gradients(policy, optimizer, config, step)
        means.append(stats["reward"].mean())
    return means


def test_page_log_probabilities_are_a_distribution_over_ordered_pages():
    logp = torch.log_softmax(torch.randn(7, generator=torch.Generator().manual_seed(0)), 0)
    pages = torch.stack([logp[list(order)] for order in permutations(range(7), 3)])
    # The law of one SID cut in two codes must not matter.
    whole = page_logp(torch.stack([0.3 * pages, 0.7 * pages], -1))
    assert whole.shape == (210, 3)
    assert float(whole.sum(-1).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_ratios_of_pages_average_to_one_at_every_place():
    """What a term of the KL estimator and clipping need: each place is a conditional distribution of its own."""
    old, new = torch.log_softmax(torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), -1)
    orders = [list(order) for order in permutations(range(6), 3)]
    drawn, other = (page_logp(torch.stack([values[order] for order in orders])[..., None]) for values in (old, new))
    ratio = (drawn.sum(-1, keepdim=True).exp() * (other - drawn).exp()).sum(0)
    torch.testing.assert_close(ratio, torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("environment", ["page", "session"])
def test_on_policy_the_ratio_is_one_for_pages(environment):
    if environment == "page":
        policy, contexts, reward, engine = page_world()
        config = PAGE
    else:
        policy, contexts, reward, engine, _ = session_world()
        config = SESSION
    batch, stats = rollout_groups(contexts, engine, reward, config, seed=0)
    assert batch.codes.shape == (len(contexts), 8, 3 * policy.levels)
    assert np.abs(batch.advantage).max() > 0
    assert all(np.isfinite(values).all() for values in stats.values())
    loss, metrics = group_loss(policy, batch, replace(config, kl_weight=0.1), policy)
    assert metrics["sampling/logp_difference_max"] < 1e-5
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.model.parameters() if p.grad is not None)


def test_a_page_earns_the_positives_that_it_holds():
    _, episodes, reward, engine = page_world()
    found = ANSWERS["page"](episodes, engine, reward, PAGE, 0)
    assert (found.weight == 1).all(), "a page's law is known without weights"
    items = as_pages(draw_pages(episodes, engine, PAGE, 0), PAGE.page_size).item.reshape(8, 8, 3)
    for row in range(8):
        for page in range(8):
            assert len(set(items[row, page])) == 3
            assert found.total[row, page] == len(set(items[row, page]) & set(episodes.targets[row]))
    np.testing.assert_array_equal(found.terms["rule"], found.total)


def test_a_page_earns_what_the_environment_pays_for_it():
    """The learner and ``Page-v0`` give the same page the same reward."""
    _, episodes, _, engine = page_world()
    terms = (RewardConfig("rule", 1.0, {"any_positive": True}), RewardConfig("diversity", 0.3))
    reward = RewardSum(terms, RewardContext(table=engine.policy.table), PAGE.page_size)
    found = ANSWERS["page"](episodes, engine, reward, PAGE, 0)
    slots, rng = np.arange(len(episodes)), np.random.default_rng(0)
    env = PageDynamics(len(episodes), episodes, engine.policy.table, reward, PAGE.page_size)
    for page in range(PAGE.group_size):
        env.begin(slots, rng, {"row": slots})
        moved = env.step(slots, found.codes[:, page].reshape(len(episodes), PAGE.page_size, -1), rng)
        np.testing.assert_allclose(moved.reward, found.total[:, page], rtol=1e-5)
    assert found.total.std() > 0


def test_what_cancels_is_no_signal():
    """The rounding of a sum must not become an advantage of full size."""
    _, episodes, _, engine = page_world()
    terms = tuple(RewardConfig("rule", weight, {"any_positive": True}) for weight in (0.1, 0.2, -0.3))
    reward = RewardSum(terms, RewardContext(), PAGE.page_size)
    found = ANSWERS["page"](episodes, engine, reward, PAGE, 0)
    assert found.terms["rule"].std() > 0
    assert (advantages(found, reward.weights, PAGE) == 0).all()
    assert (found.figures["audit/all_equal"] == 1).all()


def test_a_page_that_leaves_nothing_over_is_counted():
    policy, episodes, reward, _ = page_world()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(100.0)
    figures = ANSWERS["page"](episodes, TorchEngine(policy, 4), reward, PAGE, 0).figures
    assert figures["rollout/page_exhausted"].max() > 0


def test_pages_learn_the_positives():
    policy, episodes, reward, engine = page_world()
    means = train(policy, episodes, reward, engine, PAGE, 120)
    best = np.mean([len(set(row)) for row in episodes.targets])
    assert means[0] < 0.4 * best
    assert np.mean(means[-5:]) > 0.85 * best


def test_without_a_horizon_a_session_is_one_page():
    """What a candidate earns is what the same page earns of a copy of the same shopper."""
    _, shoppers, reward, engine, world = session_world()
    config = replace(SESSION, horizon=0)
    found = ANSWERS["session"](shoppers, engine, reward, config, 5)
    rng = np.random.default_rng([5, 0, 3])
    sessions = open_sessions(world, shoppers.user, 6, 3, config.warm_pages, rng)
    rng.integers(0, 1, size=16)  # how many pages each shopper sees of the policy: none
    np.testing.assert_array_equal(found.contexts.history, sessions.history)
    table = reward.context.table
    items = table.trie.items_of(table.trie.leaf_of(torch.from_numpy(found.codes.reshape(-1, 3, 2))))[..., 0].numpy()
    _, played = play_page(world, sessions.take(np.repeat(np.arange(16), 8)), items, rng)
    value = session_rewards(played, reward, table)[0]
    np.testing.assert_allclose(found.total.reshape(-1), value, rtol=1e-6)
    assert value.std() > 0
    assert found.figures["session/pages_followed"].max() == 0


def test_the_pages_that_follow_are_discounted():
    _, shoppers, reward, engine, _ = session_world()
    now, later, double = (
        ANSWERS["session"](shoppers, engine, reward, replace(SESSION, discount=d), 5) for d in (0.0, 0.5, 1.0)
    )
    np.testing.assert_array_equal(now.codes, later.codes)
    assert (now.figures["session/pages_followed"] > 0).all()
    assert later.total.mean() > now.total.mean()
    assert double.total.mean() > later.total.mean()
    np.testing.assert_allclose(later.terms["engagement"], later.total, rtol=1e-5)


def test_sessions_do_not_depend_on_the_worker():
    _, shoppers, reward, engine, _ = session_world()
    config = replace(SESSION, chunk=4)
    engine.chunk = 4
    whole, _ = rollout_groups(shoppers, engine, reward, config, seed=3)
    for start in (8, 0, 12):
        part, _ = rollout_groups(shoppers.take(slice(start, start + 4)), engine, reward, config, seed=3)
        for name in ("history", "codes", "old_logp", "advantage"):
            np.testing.assert_array_equal(getattr(whole, name)[start : start + 4], getattr(part, name))


@pytest.mark.slow
def test_a_policy_learns_long_sessions():
    """From random weights to more than half of what the Bayes oracle gains, in whole sessions of other shoppers."""
    policy, shoppers, reward, engine, world = session_world()

    def judge(agent):
        settings = {"page_size": 3, "history": 6, "warm_pages": 2, "discount": 0.9, "seed": 99}
        return judge_sessions(world, agent, np.arange(400), **settings)["discounted"].mean()

    random, oracle = (judge(AGENTS[name](world)) for name in ("random", "oracle"))
    before = percent_of_oracle(judge(PolicyPages(policy)), random, oracle)
    train(policy, shoppers, reward, engine, replace(SESSION, lr=4e-3), 70)
    after = percent_of_oracle(judge(PolicyPages(policy)), random, oracle)
    assert before < 20
    assert after > 50


def test_pages_need_the_distribution_over_sids():
    _, episodes, reward, engine = page_world()
    with pytest.raises(ValueError, match=r"rl.normalise = 'vocab' does not give"):
        rollout_groups(episodes, engine, reward, replace(PAGE, normalise="vocab"), 0)


def test_an_unknown_environment_names_the_known_ones():
    _, episodes, reward, engine = page_world()
    with pytest.raises(ValueError, match="known: next_item, page, session"):
        rollout_groups(episodes, engine, reward, replace(PAGE, environment="shop"), 0)


def test_sessions_need_the_simulator():
    _, episodes, reward, engine = page_world()
    with pytest.raises(ValueError, match="truth"):
        rollout_groups(episodes, engine, reward, SESSION, 0)


def candidates(terms, weights):
    total = sum(weights[name] * values for name, values in terms.items())
    shape = total.shape
    contexts = toy_episodes(shape[0], 5)
    codes, logp, weight = np.zeros((*shape, 2)), np.zeros((*shape, 2), np.float32), np.ones(shape, np.float32)
    return Candidates(contexts, codes, np.ones(shape, bool), logp, total, terms, {}, weight)


def test_each_term_is_standardised_before_the_sum():
    """A term of small spread counts as much as one of large spread, by its weight (GDPO)."""
    rng = np.random.default_rng(0)
    terms = {"big": 100 * rng.random((6, 4)), "small": 0.01 * rng.random((6, 4))}
    weights = {"big": 1.0, "small": 2.0}
    found = candidates(terms, weights)
    each = advantages(found, weights, RlConfig(combine="each"))

    def standardised(values):
        return (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)

    expected = standardised(terms["big"]) + 2 * standardised(terms["small"])
    np.testing.assert_allclose(each, expected, rtol=1e-3, atol=1e-4)
    summed = advantages(found, weights, RlConfig(combine="sum"))
    np.testing.assert_allclose(summed, standardised(terms["big"]), atol=0.01)


def test_one_term_of_weight_one_is_the_same_either_way():
    terms = {"only": np.random.default_rng(0).random((6, 4)).astype(np.float32)}
    found = candidates(terms, {"only": 1.0})
    each, summed = (advantages(found, {"only": 1.0}, RlConfig(combine=name)) for name in ("each", "sum"))
    np.testing.assert_array_equal(each, summed)
    expected = group_standardised(torch.from_numpy(terms["only"]), torch.ones(6, 4, dtype=torch.bool)).numpy()
    np.testing.assert_array_equal(each, expected)


def test_the_format_reward_teaches_which_sids_exist():
    """Warmed up on a few targets the policy also writes SIDs that do not exist; the reward drives them out."""
    table = toy_table(10, (4, 5), seed=4)
    policy = toy_policy(table, seed=4, scale=2.0)
    episodes = toy_episodes(8, 10, targets=3, seed=5)
    warm = RlConfig(rewards=(), objective="nll", nll_weight=1.0, lr=1e-2, warmup_steps=0, chunk=8, group_size=2)
    engine = TorchEngine(policy, 8)
    train(policy, episodes, RewardSum((), RewardContext(table=table), 2), engine, warm, 25)
    config = RlConfig(rewards=(RewardConfig("format"),), mode="free", group_size=6, lr=1e-2, warmup_steps=0, chunk=8)
    reward = RewardSum(config.rewards, RewardContext(table=table), 6)
    batch, stats = rollout_groups(episodes, engine, reward, config, 0)
    before = stats["rollout/valid"].mean()
    assert 0.1 < before < 0.8, "some SIDs exist, some do not"
    assert batch.valid.all(), "what does not exist is learned from, too"
    _, metrics = group_loss(policy, batch, config)
    assert metrics["sampling/logp_difference_max"] < 1e-5
    train(policy, episodes, reward, engine, config, 100)
    after = rollout_groups(episodes, engine, reward, config, 0)[1]["rollout/valid"].mean()
    assert after > before + 0.3, (before, after)


def test_validation_judges_whole_sessions():
    """The same shoppers every time, so that two policies are compared on equal terms."""
    policy, shoppers, reward, _, _ = session_world()
    first, again = (session_return(policy, shoppers, reward, SESSION) for _ in range(2))
    assert first == again > 0
    other = toy_policy(policy.table, seed=7, scale=2.0, config=POLICY)
    assert session_return(other, shoppers, reward, SESSION) != first
