"""Items merged in prompts: against sums written out, enumeration, plain passes over embeddings, and files."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy import TINY, toy_episodes, toy_policy, toy_table
from transformers import AutoModelForCausalLM

from sidgym.agents.checkpoint import CheckpointError, load_policy, save_policy
from sidgym.agents.config import RlConfig
from sidgym.agents.engine import HfEngine, TorchEngine, VllmEngine
from sidgym.agents.grow import grow_policy
from sidgym.agents.merger import FILE, merger_of
from sidgym.agents.microbatches import group_tokens
from sidgym.agents.packed import packed_logp
from sidgym.agents.policy import build_policy
from sidgym.agents.student import frozen_copy, learning_policies, load_weights, model_weights
from sidgym.agents.task import RlTask, save_episodes
from sidgym.agents.tokens import FIRST_ITEM
from sidgym.agents.update import GroupBatch, apply_gradients, group_loss, make_optimizer
from sidgym.envs.records import PAD_ITEM
from sidgym.sid.table import SidTable

ARCHITECTURES = ("qwen3", "gpt2")


def merging(architecture="qwen3", items=30, scale=20.0, **shape):
    """A policy whose merger has weights of its own, so that nothing holds by the way it starts."""
    config = replace(TINY, architecture=architecture, merge_items=True, **shape)
    policy = toy_policy(toy_table(items), scale=scale, config=config)
    merger = merger_of(policy.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in merger.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return policy


def by_hand(policy, history):
    """Embeddings (1 + T, H) of a merged prompt: sums over levels, written out."""
    table, merger = policy.model.get_input_embeddings().weight, merger_of(policy.model)
    width = table.shape[1]
    rows = [table[policy.tokens.history]]
    for item in history[history != PAD_ITEM].tolist():
        row = merger.bias.clone()
        for level, code in enumerate(policy.table.codes[item].tolist()):
            token = policy.level_ids(level)[code]
            row = row + merger.weight[:, level * width : (level + 1) * width] @ table[token]
        rows.append(row)
    return torch.stack(rows)


def logp_by_hand(policy, history, codes, normalise="trie"):
    """Log-probabilities (L,) of one SID, by one pass of transformers over embeddings, without mask or cache."""
    table = policy.model.get_input_embeddings().weight
    ids = [policy.level_ids(level)[code] for level, code in enumerate(codes)]
    prompt = by_hand(policy, history)
    logits = policy.model(inputs_embeds=torch.cat([prompt, table[torch.stack(ids)]])[None]).logits[0].float()
    out = []
    for level, token in enumerate(ids):
        row = logits[len(prompt) - 1 + level]
        same = (policy.table.codes[:, :level] == np.asarray(codes[:level])).all(1)
        children = policy.level_ids(level)[sorted(set(policy.table.codes[same, level].tolist()))]
        out.append(row[token] - (row[children] if normalise == "trie" else row).logsumexp(0))
    return torch.stack(out)


def groups(policy, count=5, size=4, seed=1):
    """Random groups with their own log-probabilities."""
    rng = np.random.default_rng(seed)
    contexts = toy_episodes(count, policy.table.num_items, seed=seed)
    codes = policy.table.codes[rng.integers(0, policy.table.num_items, (count, size))]
    with torch.no_grad():
        logp = packed_logp(policy, contexts.history, torch.from_numpy(codes)).logp.numpy()
    rows = {"valid": np.ones((count, size), bool), "weight": np.ones((count, size), np.float32)}
    advantage = rng.normal(size=(count, size)).astype(np.float32)
    number = np.arange(count)
    return GroupBatch(contexts.history, contexts.targets, codes, old_logp=logp, advantage=advantage, context=number,
                      version=0 * number, **rows)  # fmt: skip


def gradients(policy, loss):
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def test_a_prompt_is_the_opening_token_and_one_id_an_item():
    policy = merging()
    ids, mask = policy.tokens.prompts(np.array([[PAD_ITEM, 4, 7], [1, 2, 3]]))
    assert ids.tolist() == [
        [policy.tokens.pad, policy.tokens.history, FIRST_ITEM + 4, FIRST_ITEM + 7],
        [policy.tokens.history, FIRST_ITEM + 1, FIRST_ITEM + 2, FIRST_ITEM + 3],
    ]
    assert mask.sum(axis=1).tolist() == [3, 4]
    apart = build_policy(TINY, policy.table, 0)
    assert apart.tokens.prompts(np.array([[1, 2, 3]]))[0].shape == (1, 1 + 3 * 3)
    assert not apart.merges
    assert merger_of(apart.model) is None


def test_an_items_embedding_is_the_linear_map_of_its_codes_end_to_end():
    policy = merging()
    history = np.array([3, 9, 3])
    ids = torch.from_numpy(policy.tokens.prompts(history[None])[0])
    assert torch.allclose(policy.embed(ids)[0], by_hand(policy, history), atol=1e-5)


def test_a_new_merger_gives_the_scaled_sum_of_the_codes():
    policy = toy_policy(toy_table(30), scale=1.0, config=replace(TINY, merge_items=True))
    table = policy.model.get_input_embeddings().weight
    whole = policy.embed(torch.tensor([FIRST_ITEM + 5]))[0]
    assert torch.allclose(whole, table[policy.item_ids[5]].sum(0) / 3**0.5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rollouts_are_what_enumeration_behind_the_merged_prompt_gives(architecture):
    policy = merging(architecture)
    contexts = toy_episodes(6, 30, seed=2)
    contexts = contexts.take([int((contexts.history == PAD_ITEM).any(1).argmax()), 0])
    assert (contexts.history == PAD_ITEM).any()
    found = TorchEngine(policy).rollout(contexts, 30, "beam")
    for row, history in enumerate(contexts.history):
        with torch.no_grad():
            every = [logp_by_hand(policy, history, codes) for codes in policy.table.codes]
        total = torch.stack(every).sum(-1)
        order = total.argsort(descending=True)[:30].numpy()
        assert found.valid[row].all()
        assert np.allclose(found.logp[row].sum(-1), total[order].numpy(), atol=1e-3)
        assert sorted(found.item[row].tolist()) == list(range(30))
        assert found.item[row, 0] == order[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_draws_store_the_log_probabilities_of_the_update(architecture):
    policy = merging(architecture, scale=4.0)
    contexts = toy_episodes(4, 30, seed=5)
    for mode in ("sample", "stochastic_beam"):
        found = TorchEngine(policy).rollout(contexts, 6, mode, seed=1)
        with torch.no_grad():
            again = packed_logp(policy, contexts.history, torch.from_numpy(found.codes)).logp.numpy()
        assert np.allclose(np.where(found.valid[..., None], found.logp - again, 0), 0, atol=1e-4)


@pytest.mark.parametrize(("architecture", "recomputes"), [("qwen3", False), ("gpt2", True)])
def test_the_packed_update_has_the_gradient_of_candidates_one_by_one(architecture, recomputes):
    policy = merging(architecture, scale=4.0)
    batch, config = groups(policy, count=3, size=3), RlConfig(objective="grpo", kl_weight=0.0)
    if recomputes:
        policy.recompute_activations()
    own = gradients(policy, group_loss(policy, batch, config)[0])
    total = torch.zeros(())
    for row, history in enumerate(batch.history):
        for place, codes in enumerate(batch.codes[row]):
            logp = logp_by_hand(policy, history, codes)
            ratio = (logp - torch.from_numpy(batch.old_logp[row, place])).exp()
            total = total - (ratio * float(batch.advantage[row, place])).mean()
    expected = gradients(policy, total / batch.codes[..., 0].size)
    assert {"item_merger.weight", "item_merger.bias"} <= set(own)
    for name, value in expected.items():
        assert torch.allclose(own[name], value, atol=2e-3 * float(value.abs().max().clamp_min(1e-3))), name


def test_an_updates_prompt_is_as_short_as_a_rollouts():
    policy = merging()
    batch = groups(policy)
    assert group_tokens(policy, batch, RlConfig())[0].tolist() == (1 + (batch.history >= 0).sum(1)).tolist()


def test_the_optimiser_moves_the_merger_and_a_reference_stands_still():
    policy = merging(scale=4.0)
    reference, before = frozen_copy(policy), copy.deepcopy(merger_of(policy.model).state_dict())
    config = RlConfig(lr=0.1, warmup_steps=1)
    optimizer = make_optimizer(policy, config)
    gradients(policy, group_loss(policy, groups(policy), config)[0])
    apply_gradients(policy, optimizer, config, 1)
    for name, value in merger_of(policy.model).state_dict().items():
        assert not torch.equal(value, before[name]), name
        assert torch.equal(merger_of(reference.model).state_dict()[name], before[name]), name


def test_learners_pass_the_merger_on_with_all_other_weights(tmp_path):
    policy = merging()
    save_policy(tmp_path / "policy", policy)
    save_episodes(tmp_path / "contexts.npz", toy_episodes(3, 30))
    task = RlTask(str(tmp_path / "policy"), str(tmp_path / "contexts.npz"), 0, RlConfig(kl_weight=0.1))
    learned, reference = learning_policies(task)
    assert reference.merges
    with torch.no_grad():
        merger_of(learned.model).weight.mul_(2.0)
    weights = model_weights(learned)
    engine = TorchEngine(load_policy(tmp_path / "policy"))
    engine.load_weights(weights, 4)
    assert torch.equal(merger_of(engine.policy.model).weight, merger_of(learned.model).weight)
    with pytest.raises(ValueError, match=r"missing \['item_merger\.weight'\]"):
        engine.load_weights({n: v for n, v in weights.items() if n != "item_merger.weight"}, 5)
    load_weights(learned, None, model_weights(policy), {})
    assert torch.equal(merger_of(learned.model).weight, merger_of(policy.model).weight)


def test_adapters_leave_the_merger_as_it_is(tmp_path):
    pytest.importorskip("peft")
    policy = merging()
    save_policy(tmp_path / "policy", policy)
    task = RlTask(str(tmp_path / "policy"), "", 0, RlConfig(lora_rank=2))
    learned, _ = learning_policies(task)
    assert not merger_of(learned.model).weight.requires_grad
    weights = model_weights(learned)
    assert set(weights) == set(model_weights(policy))
    assert torch.equal(weights["item_merger.weight"], merger_of(policy.model).weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_keeps_the_merger_beside_a_model_that_opens_without_it(tmp_path, architecture):
    policy = merging(architecture)
    save_policy(tmp_path / "policy", policy)
    assert merger_of(policy.model) is not None, "writing takes nothing away"
    again, contexts = load_policy(tmp_path / "policy"), toy_episodes(3, 30)
    one, other = (TorchEngine(p).rollout(contexts, 5) for p in (policy, again))
    assert np.array_equal(one.logp, other.logp)
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    own = {name: value for name, value in policy.model.state_dict().items() if not name.startswith("item_merger")}
    assert all(torch.equal(value, own[name]) for name, value in plain.state_dict().items())
    assert set(load_file(tmp_path / "policy" / FILE)) == {"weight", "bias"}
    (tmp_path / "policy" / FILE).unlink()
    with pytest.raises(CheckpointError, match=r"item_merger\.safetensors is missing"):
        load_policy(tmp_path / "policy")
    for merges in (True, False):  # neither a new merger nor a model that reads code by code what it never saw so
        with pytest.raises(ValueError, match=r"item_merger\.safetensors is missing"):
            build_policy(replace(TINY, path=str(tmp_path / "policy"), merge_items=merges), policy.table, 1)


def test_policy_path_takes_a_trained_merger_up_and_never_drops_it(tmp_path):
    policy = merging()
    save_policy(tmp_path / "policy", policy)
    config = replace(TINY, path=str(tmp_path / "policy"), merge_items=True)
    again = build_policy(config, policy.table, 1)
    assert torch.equal(merger_of(again.model).weight, merger_of(policy.model).weight)
    with pytest.raises(ValueError, match=r"set policy\.merge_items = true"):
        build_policy(replace(config, merge_items=False), policy.table, 1)
    deeper = toy_table(30, (4, 4, 4, 4))
    with pytest.raises(ValueError, match="4 levels"):
        build_policy(config, deeper, 1)


def test_a_grown_policy_reads_new_items_merged_and_old_ones_as_before():
    policy = merging()
    old = policy.table
    new = SidTable(
        np.vstack([old.codes, [[3, 4, 6]]]), (*old.sizes[:2], 7), np.append(old.item_ids, "new"), {**old.metadata}
    )
    grown = grow_policy(policy, new)
    history = np.array([[1, 2, 3]])
    codes = torch.from_numpy(old.codes[[5, 6]])[None]
    # Rows of new codes enter the softmax over a level's children below new nodes alone; old paths are compared here.
    assert torch.equal(grown.embed(torch.tensor([FIRST_ITEM + 2])), policy.embed(torch.tensor([FIRST_ITEM + 2])))
    expected = torch.stack([logp_by_hand(grown, np.array([30, 1]), row) for row in old.codes[[5, 6]]])
    found = packed_logp(grown, np.array([[30, 1]]), codes).logp[0]
    assert torch.allclose(found, expected, atol=1e-3)
    assert grown.merges
    assert packed_logp(grown, history, codes).logp.shape == (1, 2, 3)


def test_engines_that_take_token_ids_refuse_by_name_and_say_what_to_do():
    policy = merging()
    for name, engine in (("hf", HfEngine), ("vllm", VllmEngine)):
        with pytest.raises(ValueError, match=rf"engine '{name}' .* merged items .* use rl\.engine = 'torch'"):
            engine(policy)


def test_an_architecture_that_reads_more_than_embeddings_is_refused(monkeypatch):
    policy = build_policy(TINY, toy_table(30), 0)
    kind = type(policy.model.base_model)
    plain = kind.forward

    def forward(self, input_ids=None, inputs_embeds=None, **rest):
        out = plain(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **rest)
        if inputs_embeds is not None:
            out.last_hidden_state = 2 * out.last_hidden_state
        return out

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(ValueError, match="'qwen3' does more with a token"):
        build_policy(replace(TINY, merge_items=True), toy_table(30), 0)
