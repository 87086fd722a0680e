"""What is trained and compared with: a reference that moves, adapters, bfloat16 passes, activations computed again."""

from dataclasses import replace

import pytest
import torch
from toy import TINY, toy_episodes, toy_policy, toy_table
from trainers import CONFIG, TorchTrainer, assert_alike, never_stopped, resumed, rllib_trainer, same, steps, toy_task
from transformers import AutoModelForCausalLM

from sidgym.agents import packed
from sidgym.agents.checkpoint import load_policy, save_policy
from sidgym.agents.config import LogConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.logging import MetricsLog, read_metrics
from sidgym.agents.lora import adapter_tensors, add_adapters, load_adapters
from sidgym.agents.recipes import completed
from sidgym.agents.rl import frozen_copy, model_weights, train_rl
from sidgym.agents.student import learning_policies
from sidgym.agents.update import COARSE, check_parity, group_forward, make_optimizer, rollout_groups
from sidgym.envs.rewards import RewardContext, RewardSum

ON_POLICY = {"epochs": 1, "minibatch": 0}
ARCHITECTURES = {"blocks": TINY, "transformers": replace(TINY, architecture="gpt2")}
"""One that ``tree_cache`` walks by itself, one that it leaves to transformers."""


def drawn(policy, config):
    """Groups of a toy catalogue, drawn with ``policy``."""
    reward = RewardSum(config.rewards, RewardContext(table=policy.table), config.group_size)
    episodes = toy_episodes(8, 30, targets=2)
    return rollout_groups(episodes, TorchEngine(policy, config.chunk), reward, config, seed=0)[0]


def gradients(policy, batch, config, reference=None):
    policy.model.zero_grad(set_to_none=True)
    group_forward(policy, batch, config, reference).loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


# The reference


def test_the_reference_takes_the_policys_weights_every_so_many_iterations(tmp_path):
    trainer = TorchTrainer(toy_task(tmp_path, reference_every=2, **ON_POLICY))
    start, kl = trainer.weights(), []
    for number in range(5):
        kl.append(trainer.step(number)["kl"])
        taken = trainer.weights() if number % 2 else None
        assert same(model_weights(trainer.reference), taken or start)
        start = taken or start
    assert [value < 1e-9 for value in kl] == [True, False, True, False, True]
    assert not any(p.requires_grad for p in trainer.reference.parameters())


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_with_a_moving_reference_is_resumed_to_the_bit(tmp_path, at):
    task = toy_task(tmp_path, reference_every=2)
    whole, expected = never_stopped(task, 4)
    half, before = never_stopped(task, at)
    fresh = resumed(half, tmp_path / "half", TorchTrainer(task))
    assert before + steps(fresh, range(at, 4)) == expected
    assert_alike(fresh, whole)


def test_only_a_moving_reference_goes_into_checkpoints(tmp_path):
    def kept(**changes):
        return {name.split("/")[0] for name in TorchTrainer(toy_task(tmp_path, **changes)).state()}

    assert "reference" not in kept()
    assert "reference" in kept(reference_every=3)
    assert "reference" not in kept(reference_every=3, kl_weight=0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {"kl_reference": "frozen", "kl_estimator": "k3"}),
        ({"reference_every": 5, "kl_estimator": "k2"}, {"kl_reference": "policy of every 5 iterations"}),
        ({"kl_weight": 0.0}, {"kl_reference": "none"}),
        ({"objective": "s_dpo", "kl_weight": 0.0}, {"kl_reference": "frozen", "kl_weight": 0.1}),
        ({"objective": "dapo"}, {"clip_high": 0.28, "refills": 3, "ratio": "token", "nll_weight": 0.1}),
        ({"objective": "gspo"}, {"clip_high": 0.2, "refills": 0, "ratio": "sequence_mean"}),
    ],
)
def test_the_log_names_the_estimator_and_the_reference(tmp_path, changes, said):
    task = toy_task(tmp_path, backend="torch", steps=0, **changes)

    def log(step):
        return MetricsLog(tmp_path / "run", LogConfig(wandb="disabled"), "test", resume_from=step)

    train_rl(task, toy_episodes(6, 30, seed=9), tmp_path / "run/training", log)
    first = read_metrics(tmp_path / "run/metrics.jsonl")[0]
    assert said.items() <= first.items()
    assert ("kl_estimator" in first) == (first["kl_reference"] != "none")


# Adapters


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


@pytest.mark.usefixtures("peft")
def test_adapters_alone_are_trained_and_others_see_merged_weights(tmp_path):
    task = toy_task(tmp_path, lora_rank=4, parity_tolerance=1e-5, lr=1e-2)
    trainer = TorchTrainer(task)
    start = trainer.weights()
    assert same(start, model_weights(load_policy(task.policy))), (
        "adapters begin as nothing, under a plain model's names"
    )
    learned = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for n, p in trainer.policy.model.named_parameters() if ".lora_" in n}
    base = {n: p.clone() for n, p in trainer.policy.model.named_parameters() if ".lora_" not in n}
    steps(trainer, range(3))  # each rollout passes the check of its log-probabilities
    assert all(torch.equal(p, base[n]) for n, p in trainer.policy.model.named_parameters() if n in base)
    end = trainer.weights()
    assert {name for name in end if not torch.equal(end[name], start[name])} == {
        f"model.layers.{layer}.{part}.weight"
        for layer in range(TINY.layers)
        for part in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    }
    merged = load_policy(task.policy)
    merged.model.load_state_dict(end, strict=False)
    batch = trainer._draw(9)[0]
    mine, theirs = (group_forward(p, batch, trainer.config) for p in (trainer.policy, merged))
    torch.testing.assert_close(mine.inputs.logp, theirs.inputs.logp, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("at", [1, 3])
def test_a_run_with_adapters_is_resumed_to_the_bit(tmp_path, at):
    task = toy_task(tmp_path, lora_rank=4, reference_every=2)
    whole, expected = never_stopped(task, 4)
    half, before = never_stopped(task, at)
    fresh = resumed(half, tmp_path / "half", TorchTrainer(task))
    assert before + steps(fresh, range(at, 4)) == expected
    assert_alike(fresh, whole)


@pytest.mark.usefixtures("peft")
def test_adapters_of_another_rank_are_refused(tmp_path):
    half, _ = never_stopped(toy_task(tmp_path, lora_rank=4), 1)
    with pytest.raises(ValueError, match=r"begun with another lora_rank"):
        resumed(half, tmp_path / "half", TorchTrainer(toy_task(tmp_path, lora_rank=2)))
    policy = toy_policy(toy_table())
    add_adapters(policy, 2, seed=0)
    with pytest.raises(ValueError, match="got 0 of other names"):
        load_adapters(policy, {})


@pytest.mark.usefixtures("peft")
def test_the_same_seed_draws_the_same_adapters(tmp_path):
    def first(seed):
        return adapter_tensors(learning_policies(replace(toy_task(tmp_path, lora_rank=4), seed=seed))[0])

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert same(first(0), first(0))
    assert not same(first(0), first(1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("peft")
def test_training_with_adapters_gives_a_plain_checkpoint(tmp_path):
    task = toy_task(tmp_path, backend="torch", lora_rank=4, steps=2, select_by="last", lr=1e-2)

    def log(step):
        return MetricsLog(tmp_path / "run", LogConfig(wandb="disabled"), "test", resume_from=step)

    policy = train_rl(task, toy_episodes(6, 30, seed=9), tmp_path / "run/training", log)
    save_policy(tmp_path / "saved", policy)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    trained = TorchTrainer(task)
    steps(trained, range(2))
    kept = trained.weights()
    assert all(torch.equal(value, kept[name]) for name, value in opened.state_dict().items() if name in kept)
    assert not same(kept, model_weights(load_policy(task.policy)))


@pytest.mark.ray
@pytest.mark.usefixtures("peft")
def test_rllib_trains_the_same_adapters(tmp_path):
    pytest.importorskip("ray")
    task = toy_task(tmp_path, lora_rank=4, reference_every=2)
    plain, expected = never_stopped(task, 4)
    half, _ = never_stopped(task, 2)
    trainer = rllib_trainer(task)
    try:
        assert steps(trainer, range(4)) == expected
        assert_alike(trainer, plain)
        resumed(half, tmp_path / "half", trainer)
        assert steps(trainer, range(2, 4)) == expected[2:]
        assert_alike(trainer, plain)
    finally:
        trainer.close()


# Gradients by other ways


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_activations_give_the_same_gradients_from_fewer_kept_numbers(architecture, rank):
    if rank:
        pytest.importorskip("peft")
    config = completed(replace(CONFIG, kl_weight=0.0))
    policy = toy_policy(toy_table(), scale=6.0, config=replace(ARCHITECTURES[architecture], layers=3))
    batch = drawn(policy, config)
    if rank:
        add_adapters(policy, rank, seed=0)
        for name, parameter in policy.model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    kept = {}

    def measured(which):
        held = {}

        def pack(tensor):
            held[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.model.zero_grad(set_to_none=True)
            loss = group_forward(policy, batch, config).loss
            kept[which] = sum(held.values())
            loss.backward()
        return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}

    plain = measured("plain")
    policy.recompute_activations()
    again = measured("again")
    assert again.keys() == plain.keys()
    assert any(float(value.abs().max()) > 1e-4 for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7)
    assert kept["again"] < 0.8 * kept["plain"]
    assert not any(module.training for module in policy.modules())


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}])
def test_the_walk_through_the_blocks_has_the_gradients_of_transformers_own(monkeypatch, tmp_path, changes):
    if "lora_rank" in changes:
        pytest.importorskip("peft")
    task = toy_task(tmp_path, **changes)
    config = completed(task.config)
    policy, reference = learning_policies(replace(task, config=config))
    batch = drawn(load_policy(task.policy), config)
    for name, parameter in policy.model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    walked = gradients(policy, batch, config, reference)
    monkeypatch.setattr(packed, "knows_blocks", lambda policy: False)
    usual = gradients(policy, batch, config, reference)
    assert walked.keys() == usual.keys()
    one, other = (torch.cat([g[name].flatten() for name in usual]) for g in (walked, usual))
    if config.precision == "bfloat16":
        assert float(torch.cosine_similarity(one, other, dim=0)) > 0.995
    else:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_that_recomputes_activations_is_the_run_that_holds_them(tmp_path):
    plain, expected = never_stopped(toy_task(tmp_path), 3)
    again, got = never_stopped(toy_task(tmp_path, gradient_checkpointing=True), 3)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in theirs.items()}
    for name, value in plain.weights().items():
        torch.testing.assert_close(again.weights()[name], value, rtol=0, atol=1e-5)


# bfloat16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_passes_are_close_and_keep_weights_and_gradients_in_float32(architecture):
    config = completed(replace(CONFIG, precision="bfloat16"))
    policy = toy_policy(toy_table(), scale=6.0, config=ARCHITECTURES[architecture])
    reference, batch = frozen_copy(policy), drawn(policy, config)
    exact = gradients(policy, batch, replace(config, precision="float32"), reference)
    rough = gradients(policy, batch, config, reference)
    assert all(value.dtype == torch.float32 for value in rough.values())
    one, other = (torch.cat([g[name].flatten() for name in exact]) for g in (exact, rough))
    assert not torch.equal(one, other)
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.99
    forward = group_forward(policy, batch, config, reference)
    assert forward.inputs.logp.dtype == forward.inputs.ref_logp.dtype == torch.float32
    drift = forward.metrics["sampling/logp_difference_max"]
    assert 1e-6 < drift < 0.2 * COARSE
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    optimizer = make_optimizer(policy, config)
    optimizer.step()
    assert all(p.dtype == torch.float32 for p in policy.model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


def test_rollouts_of_another_policy_are_noticed_in_bfloat16_too():
    config = completed(replace(CONFIG, precision="bfloat16"))
    policy = toy_policy(toy_table(), scale=6.0)
    batch = drawn(policy, config)
    forward = group_forward(policy, batch, config)
    check_parity(policy, forward, config)
    other = replace(batch, old_logp=batch.old_logp + 2 * COARSE)
    with pytest.raises(RuntimeError, match=r"at most 0.5 .rl.parity_tolerance = 0.001"):
        check_parity(policy, group_forward(policy, other, config), config)
    check_parity(policy, group_forward(policy, other, config), replace(config, parity_tolerance=0.0))


@pytest.mark.parametrize("changes", [{"lora_rank": 2, "gradient_checkpointing": True, "staleness": 1}, {}])
def test_training_in_bfloat16_repeats_itself_and_resumes(tmp_path, changes):
    if changes:
        pytest.importorskip("peft")
    task = toy_task(tmp_path, precision="bfloat16", **changes)
    whole, expected = never_stopped(task, 3)
    half, before = never_stopped(task, 1)
    fresh = resumed(half, tmp_path / "half", TorchTrainer(task))
    assert before + steps(fresh, range(1, 3)) == expected
    assert_alike(fresh, whole)
