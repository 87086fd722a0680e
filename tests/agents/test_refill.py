"""Dynamic sampling: which groups make room for which, whoever rolls them out."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.refill import has_signal, refill
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.agents.update import (
    GroupBatch,
    Groups,
    concatenate_groups,
    contexts_of_step,
    over_rollout,
    rollout_groups,
    step_seed,
)
from sidgym.envs.rewards import RewardContext, RewardSum


def groups(signal, first=0) -> Groups:
    """Groups of two candidates; ``context`` numbers them, and those without a signal have advantage 0."""
    signal = np.asarray(signal, dtype=np.float32)
    size, context = len(signal), first + np.arange(len(signal))
    zeros = np.zeros((size, 2), dtype=np.float32)
    batch = GroupBatch(
        history=np.repeat(context[:, None], 3, axis=1),
        targets=np.zeros((size, 1), dtype=np.int64),
        codes=np.zeros((size, 2, 3), dtype=np.int64),
        valid=np.ones((size, 2), dtype=bool),
        old_logp=np.zeros((size, 2, 3), dtype=np.float32),
        advantage=zeros + signal[:, None] * np.array([1.0, -1.0], dtype=np.float32),
        weight=zeros + 1,
        context=context,
        version=np.full(size, 7),
    )
    return batch, {"reward": context.astype(np.float64)}


def test_silent_groups_make_room_in_order():
    slices = {1: groups([0, 1, 1], 100), 2: groups([1, 1, 1], 200)}
    batch, figures = refill(groups([0, 1, 0, 0]), lambda k: slices[k], 2)
    assert batch.context.tolist() == [101, 1, 102, 200]
    assert batch.history[:, 0].tolist() == [101, 1, 102, 200], "every field goes along"
    assert has_signal(batch).all()
    assert figures["refill/rounds"].tolist() == [2] * 4
    assert figures["refill/replaced"].tolist() == [1, 0, 1, 1]
    assert figures["refill/without_signal"].tolist() == [0] * 4
    assert figures["reward"].tolist() == [0, 1, 2, 3], "of the contexts drawn first, not of a selection"


def test_what_cannot_be_replaced_stays():
    batch, figures = refill(groups([0, 0, 1]), lambda k: groups([0, 0, k == 2], 100 * k), 2)
    assert batch.context.tolist() == [202, 1, 2]
    assert figures["refill/without_signal"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("signal", "limit"), [([1, 1], 3), ([0, 1], 0)])
def test_nothing_is_drawn_that_is_not_needed(signal, limit):
    def draw(number):
        raise AssertionError("nothing to draw for")

    start = groups(signal)
    batch, figures = refill(start, draw, limit)
    assert batch.context.tolist() == [0, 1]
    assert ("refill/rounds" in figures) == (limit > 0)
    assert not np.any(figures.get("refill/rounds", 0))


def test_a_context_that_is_there_already_does_not_come_again():
    """Slices run into the next epoch where there are few contexts; groups of one context differ by their draws."""
    again, fresh = groups([1, 1, 1, 1], 1), groups([1, 1, 1, 1], 10)
    fresh[0].context[:3] = 10
    batch, figures = refill(groups([0, 1, 0, 0]), {1: again, 2: fresh}.get, 2)
    assert batch.context.tolist() == [4, 1, 10, 13], "neither 2, which goes, nor 10 twice"
    assert figures["refill/rounds"].tolist() == [2] * 4


def test_what_is_replaced_makes_no_room_for_itself():
    batch, figures = refill(groups([0, 1, 0]), {1: groups([1, 1, 1], 0)}.get, 1)
    assert batch.context.tolist() == [0, 1, 2]
    assert figures["refill/without_signal"].tolist() == [1, 0, 1]


def test_few_contexts_are_not_learned_from_twice():
    config = replace(CONFIG, refills=3)
    for total in (8, 13):
        batch, figures = refilled(config, 1, total)
        assert figures["refill/rounds"][0] > 0
        assert len(set(batch.context.tolist())) == len(batch)


def test_the_spread_of_the_rollout_is_that_of_what_stays():
    """``batch_standardised`` divides once the groups that are learned from are known; signals are told before."""
    config = replace(CONFIG, advantage="batch_standardised", mode="sample", rewards=(RewardConfig("prefix"),))
    batch, figures = refilled(config, 2)
    assert 0 < figures["refill/replaced"].sum() < len(batch)
    done = over_rollout(batch, config)
    np.testing.assert_array_equal(has_signal(done), has_signal(batch))
    assert float(np.square(done.advantage[done.valid]).mean()) == pytest.approx(1, rel=1e-5)
    spread = np.sqrt(np.square(batch.advantage[batch.valid]).mean())
    np.testing.assert_allclose(done.advantage, batch.advantage / spread, rtol=1e-5)
    np.testing.assert_allclose(batch.advantage.sum(1), 0, atol=1e-6)


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.lists(st.lists(st.booleans(), min_size=1), max_size=4))
def test_size_and_signals_stay_and_no_group_is_there_twice(signal, slices):
    asked = []

    def draw(number):
        asked.append(number)
        return groups(slices[number - 1], 100 * number)

    batch, figures = refill(groups(signal), draw, len(slices))
    assert len(batch) == len(signal)
    assert len(set(batch.context.tolist())) == len(batch)
    assert asked == list(range(1, len(asked) + 1))
    kept = np.flatnonzero(signal)
    np.testing.assert_array_equal(batch.context[kept], kept)
    found = sum(map(sum, slices[: len(asked)]))
    assert has_signal(batch).sum() == min(len(signal), sum(signal) + found)
    if slices:
        np.testing.assert_array_equal(has_signal(batch), figures["refill/without_signal"] == 0)


CONFIG = RlConfig(group_size=4, contexts_per_step=6, chunk=2, refills=2)


def world(config=CONFIG):
    table = toy_table()
    engine = TorchEngine(toy_policy(table, scale=6.0), config.chunk)
    return toy_episodes(60, 30), engine, RewardSum(config.rewards, RewardContext(table=table), config.group_size)


def refilled(config, workers, total=60):
    """One iteration on so many workers, each with a policy of its own: chunks in turn, the last worker first."""
    episodes = world(config)[0].take(slice(0, total))
    engines = [world(config)[1:] for _ in range(workers)]

    def draw(number):
        rows = contexts_of_step(len(episodes), config, 0, 3, number)
        seed = step_seed(0, 3, number)
        chunks = [rows[at : at + config.chunk] for at in range(0, len(rows), config.chunk)]
        done = {}
        for worker in reversed(range(workers)):
            for place in range(worker, len(chunks), workers):
                done[place] = rollout_groups(episodes.take(chunks[place]), *engines[worker], config, seed)
        return concatenate_groups([done[place] for place in sorted(done)])

    return refill(draw(0), draw, config.refills)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_give_what_the_plain_trainer_draws(workers, tmp_path):
    episodes, engine, _ = world()
    save_policy(tmp_path / "policy", engine.policy)
    save_episodes(tmp_path / "contexts.npz", episodes)
    one, figures = TorchTrainer(RlTask(str(tmp_path / "policy"), str(tmp_path / "contexts.npz"), 0, CONFIG))._draw(3)
    two, others = refilled(CONFIG, workers)
    assert figures["refill/replaced"].sum() > 0
    for field in fields(GroupBatch):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
    for name, values in figures.items():
        np.testing.assert_array_equal(values, others[name])
    assert len(one) == CONFIG.contexts_per_step


def test_slices_share_no_context_and_no_draws():
    total = 60
    slices = [contexts_of_step(total, CONFIG, 0, step, k) for step in range(3) for k in range(3)]
    assert len(set(np.concatenate(slices).tolist())) == 9 * 6, "within an epoch no context comes twice"
    alone = replace(CONFIG, refills=0)
    np.testing.assert_array_equal(contexts_of_step(total, alone, 0, 4), contexts_of_step(total, CONFIG, 0, 1, 1))
    seeds = [step_seed(0, step, k) for step in range(4) for k in range(4)]
    assert len(set(seeds)) == len(seeds)


def test_an_objective_brings_its_own_number_of_slices():
    dapo, grpo = RlConfig(objective="dapo", contexts_per_step=4), RlConfig(contexts_per_step=4)
    np.testing.assert_array_equal(contexts_of_step(50, dapo, 0, 1), contexts_of_step(50, grpo, 0, 4))
