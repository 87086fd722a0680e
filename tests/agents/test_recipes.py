"""What a configuration means for its objective, and what cannot make a difference."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents.advantages import ADVANTAGES
from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.objectives import OBJECTIVES, RECIPES, LossInputs, Recipe
from sidgym.agents.recipes import check_objective, completed, indistinct, on_policy, recipe_of, spec_of
from sidgym.agents.student import frozen_copy
from sidgym.agents.task import RlTask, save_episodes
from sidgym.agents.trainer import TorchTrainer
from sidgym.agents.update import GroupBatch, group_forward, group_loss, rollout_groups
from sidgym.envs.rewards import RewardContext, RewardSum

STEPS = {"epochs": 2}, {"minibatch": 8, "contexts_per_step": 64}, {"staleness": 1}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_empty_settings_become_the_objectives_own(name):
    full = completed(RlConfig(objective=name))
    assert full.advantage == RECIPES[name].advantage
    assert full.ratio == RECIPES[name].ratio
    assert full.nll_weight == RECIPES[name].nll_weight
    assert completed(full) is full
    settings = {"advantage": "signed", "ratio": "token", "clip_high": 0.4}
    settings |= {"kl_weight": 0.3, "nll_weight": 0.7, "refills": 1, "rewards": (RewardConfig("format"),)}
    given = RlConfig(objective=name, **settings)
    assert completed(given) is given, "what is set counts"


def test_what_objectives_bring_along():
    assert completed(RlConfig(objective="dapo")).clip_high == 0.28
    assert completed(RlConfig(objective="dapo")).refills == 3
    assert completed(RlConfig(objective="grpo_sr")).nll_weight == 0.1
    assert completed(RlConfig(objective="s_dpo")).kl_weight == 0.1
    assert spec_of(RlConfig(objective="gspo", ecpo_delta=0.3, kl_estimator="k1")).ratio == "sequence_mean"
    rewards = RlConfig().rewards
    assert completed(RlConfig(objective="format_ecpo")).rewards == (*rewards, RewardConfig("format"))
    own = (RewardConfig("format", 0.5),)
    assert completed(RlConfig(objective="format_ecpo", rewards=own)).rewards == own
    assert completed(RlConfig()) == RlConfig(advantage="group_standardised", ratio="token")


def test_an_objective_of_ones_own_has_a_recipe_of_its_own(monkeypatch):
    module = types.ModuleType("my_objectives")
    module.plain = lambda inputs, spec: (inputs.logp.sum(), {})
    module.own = lambda inputs, spec: (inputs.logp.sum(), {})
    module.own.recipe = Recipe(advantage="leave_one_out", nll_weight=0.2, mode="sample")
    module.wrong = lambda inputs, spec: (inputs.logp.sum(), {})
    module.wrong.recipe = {"advantage": "leave_one_out"}
    monkeypatch.setitem(sys.modules, "my_objectives", module)
    assert recipe_of("my_objectives:plain") == Recipe()
    assert indistinct(RlConfig(objective="my_objectives:plain")) is None
    full = completed(RlConfig(objective="my_objectives:own"))
    assert (full.advantage, full.nll_weight) == ("leave_one_out", 0.2)
    with pytest.raises(ValueError, match=r"'my_objectives:own' needs rl.mode = 'sample', got 'beam'"):
        check_objective(RlConfig(objective="my_objectives:own"))
    with pytest.raises(ValueError, match="expected its recipe to be a Recipe, got dict"):
        recipe_of("my_objectives:wrong")
    with pytest.raises(ValueError, match=r"unknown objective 'gropo'.*Did you mean 'grpo'"):
        completed(RlConfig(objective="gropo"))


def test_settings_that_an_objective_cannot_use_are_refused():
    for name in OBJECTIVES:
        if name != "format_ecpo":
            check_objective(RlConfig(objective=name))
    check_objective(RlConfig(objective="format_ecpo", mode="free"))
    with pytest.raises(ValueError, match=r"'format_ecpo' needs rl.mode = 'free', got 'beam'"):
        check_objective(RlConfig(objective="format_ecpo"))
    for name in ("s_dpo", "nll"):
        with pytest.raises(ValueError, match=rf"'{name}' reads no advantages.*expected rl.refills = 0, got 2"):
            check_objective(RlConfig(objective=name, refills=2))
    with pytest.raises(ValueError, match=r"'s_dpo' judges single items.*got 'page'"):
        check_objective(RlConfig(objective="s_dpo", environment="page"))


@pytest.mark.parametrize("change", STEPS)
def test_off_policy_nothing_is_said_of_those_with_ratios_or_bounds_of_their_own(change):
    assert on_policy(RlConfig(minibatch=64))
    assert not on_policy(RlConfig(**change))
    for name in OBJECTIVES:
        said = indistinct(RlConfig(objective=name, advantage="group_standardised", **change))
        assert (said is not None) == (name == "dr_grpo"), "which has nothing but other advantages and a factor"
    assert "its ratios and its clip are GRPO's" in indistinct(
        RlConfig(objective="dr_grpo", advantage="group_standardised", **change)
    )


def test_warnings_say_why():
    warned = {name for name in OBJECTIVES if indistinct(RlConfig(objective=name))}
    assert warned == {"ecpo", "gspo", "grpo_sr"}, "the others have advantages, groups or bounds of their own"
    same = {"advantage": "group_standardised"}
    warned = {name for name in OBJECTIVES if indistinct(RlConfig(objective=name, **same))}
    assert warned == {"reinforce", "rloo", "dr_grpo", "ecpo", "gspo", "grpo_sr"}
    text = indistinct(RlConfig(objective="ecpo"))
    assert "every ratio is 1 up to rounding" in text
    assert "times the codes of a candidate" in text
    assert "rl.epochs above 1" in text
    assert "with rl.nll_weight = 0.1" in indistinct(RlConfig(objective="grpo_sr"))
    assert "times the codes" in indistinct(RlConfig(ratio="sequence"))
    assert "times" not in indistinct(RlConfig(ratio="sequence_mean")), "on-policy that is GRPO itself"
    assert "times" not in indistinct(RlConfig(objective="dr_grpo", ratio="sequence_mean", **same))


def test_pages_have_items_and_of_one_item_one_ratio():
    page = {"environment": "page", "page_size": 4}
    assert "times the 4 items of a page" in indistinct(RlConfig(objective="ecpo", **page))
    page["page_size"] = 1
    assert "times" not in indistinct(RlConfig(objective="ecpo", **page))
    for change in STEPS:
        said = {name for name in OBJECTIVES if indistinct(RlConfig(objective=name, **page, **change))}
        assert said == {"gspo"}, "the others have advantages, bounds or policies of their own"
        text = indistinct(RlConfig(objective="dr_grpo", advantage="group_standardised", **page, **change))
        assert "a page of one item has one ratio" in text
        assert "Set rl.page_size above 1" in text
        assert indistinct(RlConfig(objective="gspo", clip_high=0.4, **page, **change)) is None
    rng = torch.Generator().manual_seed(0)
    logp = -torch.rand(4, 6, 1, generator=rng)
    batch = {"logp": logp, "old": logp - 0.3, "advantage": torch.randn(4, 6, generator=rng)}
    for name in ("gspo", "dr_grpo"):
        torch.testing.assert_close(gradient(name, batch), gradient("grpo", batch))


ONE_HIT = {"rewards": (RewardConfig("rule"),)}


@pytest.mark.parametrize("advantage", sorted(set(ADVANTAGES) - {"group_standardised", "signed"}))
def test_of_one_hit_a_group_advantages_differ_in_scale_alone(advantage):
    """So that 'dr_grpo', 'rloo' and 'reinforce' are GRPO, too; and where rewards have more values they are not."""
    rng = np.random.default_rng(0)
    hits = torch.zeros(12, 6)
    hits[torch.arange(8), torch.from_numpy(rng.integers(0, 6, 8))] = 1.0
    valid, rewards = torch.ones(12, 6, dtype=torch.bool), torch.from_numpy(rng.random((12, 6))).float()

    def scales(values):
        plain = ADVANTAGES["group_standardised"](values, valid)
        return (ADVANTAGES[advantage](values, valid) / plain)[plain != 0]

    one = scales(hits)
    assert float(one.std() / one.mean()) < 1e-5
    for objective in ("grpo", "reinforce"):
        text = indistinct(RlConfig(objective=objective, advantage=advantage, **ONE_HIT))
        assert f"because advantages {advantage!r}" in text
        assert "differ in scale alone" in text
        assert ("times the codes" in text) == (objective == "reinforce")
        for change in STEPS:
            said = indistinct(RlConfig(objective=objective, advantage=advantage, **ONE_HIT, **change))
            assert (said is not None) == (objective == "grpo"), "whatever is clipped scales with the advantage"
    same = float(scales(rewards).std()) < 1e-5
    assert same == (advantage == "per_component"), "which of one term is that term standardised"
    prefix = RlConfig(advantage=advantage, rewards=(RewardConfig("prefix"),))
    assert (indistinct(prefix) is not None) == same


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "sample"},
        {"mode": "stochastic_beam"},
        {"environment": "page"},
        {"advantage": "signed"},
        {"rewards": (RewardConfig("rule", 1.0, {"any_positive": True}),)},
        {"rewards": (RewardConfig("rule"), RewardConfig("prefix"))},
    ],
)
def test_where_groups_may_differ_in_shape_nothing_is_said(change):
    config = RlConfig(objective="rloo", **ONE_HIT)
    assert indistinct(config) is not None
    assert indistinct(replace(config, **change)) is None


def gradient(name, batch, **change):
    """Gradient by the log-probabilities of ``batch``, as the configured objective gives it."""
    config = RlConfig(objective=name, **change)
    logp = batch["logp"].clone().requires_grad_()
    given = LossInputs(logp, batch["old"], batch["advantage"], torch.ones(logp.shape[:2], dtype=torch.bool))
    OBJECTIVES[name](given, spec_of(config))[0].backward()
    return logp.grad


LOSSES = sorted(name for name, recipe in RECIPES.items() if recipe.rewarded and not (recipe.format or recipe.refills))
"""Objectives that differ by their losses, and not by their groups."""


@pytest.mark.parametrize("taken", ["", "token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_said_is_true(name, taken):
    """With the same advantages the gradient is a multiple of GRPO's on-policy just where a warning says so."""
    rng = torch.Generator().manual_seed(0)
    logp = -torch.rand(4, 6, 3, generator=rng)
    batch = {"logp": logp, "old": logp, "advantage": torch.randn(4, 6, generator=rng)}
    same = {"advantage": "group_standardised"}
    plain, ours = gradient("grpo", batch), gradient(name, batch, ratio=taken)
    ratio = ours / plain
    text = indistinct(RlConfig(objective=name, ratio=taken, **same))
    grpo_itself = name == "grpo" and taken in ("", "token")
    assert (text is not None or grpo_itself) == bool((ratio - ratio.mean()).abs().max() < 1e-4)
    if text:
        assert float(ratio.mean()) == pytest.approx(3 if "times the codes" in text else 1, rel=1e-5)
    # And off-policy.
    moved = {**batch, "old": logp + torch.randn(logp.shape, generator=rng)}
    plain, ours = gradient("grpo", moved), gradient(name, moved, ratio=taken)
    scale = (ours * plain).sum() / plain.square().sum()
    alike = bool((ours - scale * plain).norm() < 1e-4 * ours.norm())
    text = indistinct(RlConfig(objective=name, ratio=taken, epochs=2, **same))
    assert (text is not None or grpo_itself) == alike


def test_parts_can_be_taken_away_by_starting_from_another_objective():
    """The table of docs/algorithms.md: 0 takes an objective's own, so what lacks a part is said in other words."""
    rng = torch.Generator().manual_seed(0)
    logp = -torch.rand(4, 6, 3, generator=rng)
    old = logp + 0.3 * torch.randn(logp.shape, generator=rng)
    batch = {"logp": logp, "old": old, "advantage": torch.randn(4, 6, generator=rng)}
    without_refills = gradient("grpo", batch, clip_high=0.28)
    torch.testing.assert_close(gradient("dapo", batch), without_refills)
    assert completed(RlConfig(clip_high=0.28)).refills == 0
    plain = {"ratio": "token", "advantage": "group_standardised"}
    torch.testing.assert_close(gradient("grpo_sr", batch), gradient("reinforce", batch, **plain))
    assert completed(RlConfig(objective="reinforce", **plain)).nll_weight == 0
    torch.testing.assert_close(gradient("dapo", batch, clip_high=0.2), gradient("grpo", batch))


# Through the update --------------------------------------------------------------------------------------------------


def drawn(config):
    table = toy_table()
    policy = toy_policy(table, scale=6.0)
    reward = RewardSum(config.rewards, RewardContext(table=table), config.group_size)
    episodes = toy_episodes(6, 30, targets=3, seed=3)
    episodes.targets[1::2, 1] = -1
    batch, _ = rollout_groups(episodes, TorchEngine(policy, config.chunk), reward, config, seed=0)
    return policy, batch


def test_grpo_sr_has_its_targets_without_being_told():
    config = RlConfig(objective="grpo_sr", group_size=6, chunk=4)
    policy, batch = drawn(config)
    loss, metrics = group_loss(policy, batch, config)
    assert loss.item() == pytest.approx(metrics["policy_loss"] + 0.1 * metrics["nll"], rel=1e-5)


def test_s_dpo_compares_targets_with_the_other_candidates():
    config = RlConfig(objective="s_dpo", rewards=(), mode="sample", group_size=6, chunk=4)
    policy, batch = drawn(config)
    targets = np.where(batch.targets >= 0, batch.targets, 0)
    codes = policy.table.codes[targets]  # (B, M, L)
    batch = replace_codes(batch, codes)
    other = frozen_copy(toy_policy(policy.table, seed=4, scale=6.0))
    forward = group_forward(policy, batch, config, other)
    inputs = forward.inputs
    expected = [
        [any((c == codes[b, m]).all() for m in range(3) if batch.targets[b, m] >= 0) for c in batch.codes[b]]
        for b in range(len(batch))
    ]
    assert inputs.positive.tolist() == expected
    assert inputs.positive.any()
    assert not inputs.positive.all()
    wanted = group_forward(other.requires_grad_(True), batch, config, other).inputs
    torch.testing.assert_close(inputs.ref_target_logp, wanted.target_logp.detach())
    torch.testing.assert_close(inputs.ref_logp, wanted.logp.detach())
    forward.loss.backward()
    assert forward.loss.item() > 0
    with pytest.raises(ValueError, match="needs target_logp"):
        group_forward(policy, batch, config)


def replace_codes(batch: GroupBatch, codes: np.ndarray) -> GroupBatch:
    """The same groups whose first candidate is the first target."""
    changed = batch.codes.copy()
    changed[:, 0] = codes[:, 0]
    return replace(batch, codes=changed)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains(name, tmp_path):
    """From its name alone, several times on each rollout; as the whole and in parts."""
    config = RlConfig(
        objective=name, nll_weight=0.1 if name == "nll" else 0.0, group_size=6, contexts_per_step=8, chunk=4, epochs=2,
        minibatch=4, lr=1e-2, warmup_steps=0, backend="torch",
    )  # fmt: skip
    if name == "format_ecpo":  # so many that some are legal
        config = replace(config, mode="free", group_size=40)
    save_policy(tmp_path / "sft", toy_policy(toy_table(8, (3, 3)), scale=4.0), {"history": 5})
    save_episodes(tmp_path / "contexts.npz", toy_episodes(20, 8, targets=2))
    task = RlTask(str(tmp_path / "sft"), str(tmp_path / "contexts.npz"), 0, config)
    trainer, parts = (TorchTrainer(t) for t in (task, replace(task, config=replace(config, tokens_per_microbatch=60))))
    before = trainer.weights()
    figures, other = trainer.step(0), parts.step(0)
    assert all(np.isfinite(value) for value in figures.values())
    assert any((value != before[key]).any() for key, value in trainer.weights().items())
    assert other["loss"] == pytest.approx(figures["loss"], rel=1e-3, abs=1e-4)
