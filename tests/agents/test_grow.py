"""A policy that goes on with more items or codes: what was learned keeps its bits, what is new starts beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import TINY, naive_logp, toy_episodes, toy_policy, toy_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidgym.agents.checkpoint import load_policy, read_info, save_policy
from sidgym.agents.config import PolicyConfig, RlConfig, SftConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.grow import grow_checkpoint, grow_policy
from sidgym.agents.policy import Policy, build_policy, prompt_tensors
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.agents.sft import train_sft
from sidgym.envs.records import Sequences
from sidgym.sid.table import SidTable

ITEMS = 20


def wider(table: SidTable) -> SidTable:
    """Three more items: on codes that exist, and on two new ones."""
    free = next(
        [a, b, c]
        for a in range(table.sizes[0])
        for b in range(table.sizes[1])
        for c in range(table.sizes[2])
        if not (table.codes == [a, b, c]).all(1).any()
    )
    codes = np.array([free, [free[0], table.sizes[1], 0], [free[0], 0, table.sizes[2] + 1]])
    return table.extend(["x", "y", "z"], codes, collisions="forbid")


def policy_of(tied: bool, architecture: str = "qwen3") -> Policy:
    """A small policy whose output layer is the input embeddings, or is not."""
    policy = toy_policy(toy_table(ITEMS), config=replace(TINY, architecture=architecture))
    if not tied:
        # Untied as a checkpoint has it: a weight and a setting of its own.
        head = policy.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone() * 1.5)
        policy.model.config.tie_word_embeddings = False
    return policy


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def policy(request) -> Policy:
    return policy_of(request.param)


def logp_of_old_items(policy: Policy) -> torch.Tensor:
    """Log-probabilities (3, B, K) under the trie of the first ``ITEMS`` items, K codes padded with -inf."""
    trie = policy.trie.restrict(np.arange(ITEMS))
    tokens, mask = prompt_tensors(policy, toy_episodes(4, ITEMS).history)
    hidden = policy.hidden(input_ids=tokens, attention_mask=mask.long(), use_cache=False)[:, -1]
    return policy.level_logp(hidden, torch.zeros(4, dtype=torch.int64), 0, trie=trie)


def test_what_was_learned_keeps_its_bits(policy):
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    grown = grow_policy(policy, wider(policy.table), seed=3)
    after = grown.model.state_dict()
    assert before.keys() == after.keys()
    longer = set()
    for name, old in before.items():
        new = after[name]
        if new.shape != old.shape:
            longer.add(name)
            assert len(new) == len(old) + 3, "one new code on level b, two on level c"
        assert torch.equal(new[: len(old)], old), name
        assert torch.equal(policy.model.state_dict()[name], old), "the policy that was given is left as it was"
    assert longer == {"model.embed_tokens.weight", "lm_head.weight"}
    tied = policy.model.get_output_embeddings().weight is policy.model.get_input_embeddings().weight
    assert (grown.model.get_output_embeddings().weight is grown.model.get_input_embeddings().weight) == tied
    assert len(policy.tokenizer) == len(grown.tokenizer) - 3


def test_new_rows_start_as_their_siblings_and_apart(policy):
    grown = grow_policy(policy, wider(policy.table), seed=3)
    for weights in (grown.model.get_input_embeddings().weight, grown.model.get_output_embeddings().weight):
        siblings = weights[policy.level_ids(2)]
        new = weights[grown.level_ids(2)[6:]]
        assert len(new) == 2
        assert not torch.equal(new[0], new[1])
        assert ((new - siblings.mean(0)).abs() <= 0.5 * siblings.std(0)).all(), "five times the noise's deviation"
    again = grow_policy(policy, wider(policy.table), seed=3)
    other = grow_policy(policy, wider(policy.table), seed=4)
    assert torch.equal(again.model.get_input_embeddings().weight, grown.model.get_input_embeddings().weight)
    assert not torch.equal(other.model.get_input_embeddings().weight, grown.model.get_input_embeddings().weight)


def test_the_process_s_own_random_stream_is_not_touched(policy):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    grow_policy(policy, wider(policy.table))
    assert torch.equal(torch.rand(3), expected)


def test_old_items_keep_their_log_probabilities_under_the_trie_of_old_items(policy):
    episodes = toy_episodes(6, ITEMS)
    grown = grow_policy(policy, wider(policy.table))
    first = TorchEngine(policy).rollout(episodes, 8)
    second = TorchEngine(grown).rollout(episodes, 8, trie=grown.trie.restrict(np.arange(ITEMS)))
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_allclose(first.logp, second.logp, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        logp_of_old_items(grown)[:, :4], logp_of_old_items(policy), atol=1e-6, rtol=0, equal_nan=True
    )


def test_items_on_codes_that_exist_change_the_trie_alone(policy):
    table = wider(policy.table)
    inside = SidTable(table.codes[: ITEMS + 1], policy.table.sizes, table.item_ids[: ITEMS + 1])
    grown = grow_policy(policy, inside)
    for old, new in zip(policy.model.parameters(), grown.model.parameters()):
        assert torch.equal(old, new)
    first = TorchEngine(policy).rollout(toy_episodes(3, ITEMS), 5)
    second = TorchEngine(grown).rollout(toy_episodes(3, ITEMS), 5, trie=grown.trie.restrict(np.arange(ITEMS)))
    np.testing.assert_array_equal(first.logp, second.logp)
    assert (TorchEngine(grown).rollout(toy_episodes(3, ITEMS), ITEMS + 1).items == ITEMS).any(1).all()


def test_new_items_can_be_recommended_and_read(policy):
    grown = grow_policy(policy, wider(policy.table))
    history = np.array([[3, ITEMS, ITEMS + 2]])
    trie_logp = naive_logp(grown, history[0], grown.table.codes[ITEMS + 1])
    assert torch.isfinite(trie_logp).all()
    found = TorchEngine(grown).rollout(replace(toy_episodes(1, ITEMS, 3), history=history), ITEMS + 3)
    assert sorted(found.items[0].ravel().tolist()) == list(range(ITEMS + 3))


def test_it_comes_back_from_its_folder_and_trains_on(policy, tmp_path):
    save_policy(tmp_path / "old", policy, {"history": 5, "stage": "sft"})
    table = wider(policy.table)
    written = grow_checkpoint(tmp_path / "old", table, tmp_path / "new", seed=1, info={"note": "more"})
    back = load_policy(tmp_path / "new", table)
    for ours, theirs in zip(written.model.parameters(), back.model.parameters()):
        assert torch.equal(ours, theirs)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "new")) == len(written.tokenizer)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "new").config.vocab_size == len(written.tokenizer)
    info = read_info(tmp_path / "new")
    assert (info["history"], info["stage"], info["note"]) == (5, "sft", "more")
    (entry,) = info["grown"]
    assert (entry["new_items"], entry["new_codes"], entry["seed"], entry["optimizer"]) == (3, 3, 1, "fresh")
    assert entry["from_sid_hash"] == policy.table.content_hash()

    brought = build_policy(PolicyConfig(path=str(tmp_path / "new")), table, 0)
    for ours, theirs in zip(written.model.parameters(), brought.model.parameters()):
        assert torch.equal(ours, theirs)
    rows = [[k, ITEMS + k % 3, (k + 1) % ITEMS] for k in range(12)]
    sequences = Sequences(np.arange(12), np.array([i for row in rows for i in row]), np.arange(0, 37, 3))
    new = brought.level_ids(2)[6:]
    before = brought.model.get_input_embeddings().weight[new].detach().clone()
    train_sft(brought, sequences, toy_episodes(4, ITEMS), SftConfig(epochs=1, batch=4), 5, 0)
    after = brought.model.get_input_embeddings().weight[new]
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after), "new rows learn"


def test_reinforcement_learning_starts_from_it(policy, tmp_path):
    save_policy(tmp_path / "old", policy)
    grown = grow_checkpoint(tmp_path / "old", wider(policy.table), tmp_path / "new")
    save_episodes(tmp_path / "contexts.npz", toy_episodes(40, ITEMS + 3, targets=2))
    config = RlConfig(group_size=6, contexts_per_step=8, chunk=4, lr=1e-3, warmup_steps=0)
    trainer = TorchTrainer(RlTask(str(tmp_path / "new"), str(tmp_path / "contexts.npz"), 3, config))
    try:
        figures = trainer.step(0)
        assert np.isfinite(figures["reward"])
        learned = trainer.weights()["model.embed_tokens.weight"]
    finally:
        trainer.close()
    assert learned.shape == grown.model.get_input_embeddings().weight.shape
    assert not torch.equal(learned, grown.model.get_input_embeddings().weight)


def test_spare_rows_are_used_first(policy):
    policy.model.resize_token_embeddings(len(policy.tokenizer) + 10, mean_resizing=False)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[len(policy.tokenizer) :] = 0
    grown = grow_policy(policy, wider(policy.table))
    weight = grown.model.get_input_embeddings().weight
    assert len(weight) == len(policy.model.get_input_embeddings().weight)
    assert (weight[grown.level_ids(2)].abs().sum(1) > 0).all()


def test_a_table_that_is_no_extension_is_refused(policy, tmp_path):
    other = SidTable(policy.table.codes[::-1].copy(), policy.table.sizes, policy.table.item_ids)
    with pytest.raises(ValueError, match="another SID than before"):
        grow_policy(policy, other)
    save_policy(tmp_path / "old", policy)
    with pytest.raises(ValueError, match="not taken away"):
        grow_checkpoint(tmp_path / "old", toy_table(5, (2, 2, 2)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
