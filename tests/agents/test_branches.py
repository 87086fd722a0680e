"""Supervised training with merged items: branches behind a shared trunk, against one context at a time."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from text_toy import text_policy, text_store
from toy import TINY, toy_episodes, toy_policy, toy_table

from sidgym.agents.branches import needed, positions, predictors, sees
from sidgym.agents.config import SftConfig
from sidgym.agents.merger import add_merger, merger_of
from sidgym.agents.mixture import check_sft
from sidgym.agents.packed import packed_logp
from sidgym.agents.policy import Policy
from sidgym.agents.recovery import checkpoints
from sidgym.agents.sft import make_feed, train_sft
from sidgym.agents.sft_feeds import ExampleFeed, history_loss
from sidgym.agents.sft_packed import packed_loss
from sidgym.agents.tasks import TASKS, TaskContext, windows
from sidgym.agents.templates import SID_LOSS, SILENT, Renderer, Template
from sidgym.agents.tokens import FIRST_ITEM
from sidgym.envs.records import PAD_ITEM, Sequences

CATALOGUE, LOG = text_store()
CONTEXT = TaskContext(LOG, None, 4)
FEW = TaskContext(Sequences(LOG.user[:4], LOG.items[: LOG.offsets[4]], LOG.offsets[:5]), None, 4)


def merging(architecture="qwen3", **shape):
    return toy_policy(
        toy_table(20), scale=2.0, config=replace(TINY, architecture=architecture, merge_items=True, **shape)
    )


def reading(template):
    """A merging policy that knows words."""
    plain = text_policy(template)
    add_merger(plain.model, plain.levels)
    policy = Policy(plain.model, plain.tokenizer, plain.table)
    policy.use_template(template)
    return policy.eval()


def rendered(policy, task="retrieval", context=CONTEXT):
    template = Template("plain", (), (), (1,))
    return Renderer(policy.tokenizer, policy.tokens, template).render(TASKS[task](context))


def gradients(policy, loss):
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def pointwise(policy, normalise="vocab"):
    """The loss of every item behind its own merged prompt, one context at a time, by what the update computes."""
    total = torch.zeros(())
    for row in windows(FEW.sequences, 5, FEW.rng("retrieval")):
        items = row[row != PAD_ITEM]
        for place, item in enumerate(items):
            history = items[:place] if place else np.array([PAD_ITEM])
            codes = torch.from_numpy(policy.table.codes[item])[None, None]
            total = total - packed_logp(policy, history[None], codes, normalise).logp.sum()
    return total


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_every_position_has_the_loss_and_gradient_of_its_own_context_alone(architecture):
    policy = merging(architecture)
    loss, count = packed_loss(policy, rendered(policy, context=FEW))
    expected = pointwise(policy)
    assert count == len(FEW.sequences.items) * policy.levels
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    own, theirs = gradients(policy, loss), gradients(policy, expected)
    assert "item_merger.weight" in own
    for name, value in theirs.items():
        assert torch.allclose(own[name], value, atol=1e-4 * float(value.abs().max().clamp_min(1e-3))), name


def test_both_ways_to_read_branches_agree(monkeypatch):
    policy = merging()
    rows = rendered(policy)
    walked = packed_loss(policy, rows, "sid")[0]
    monkeypatch.setattr("sidgym.agents.sft_packed.is_block_family", lambda policy: False)
    assert float(packed_loss(policy, rows, "sid")[0].detach()) == pytest.approx(float(walked.detach()), rel=1e-5)


def test_a_step_is_a_branch_of_codes_and_one_merged_token():
    policy = merging()
    rows = rendered(policy)
    span = slice(rows.offsets[1], rows.offsets[2])
    tokens, loss, branch = rows.tokens[span], rows.loss[span], rows.branch[span]
    items = tokens[tokens >= FIRST_ITEM] - FIRST_ITEM
    assert tokens[0] == policy.tokens.history
    expected = [[*policy.tokens.item_tokens[item], FIRST_ITEM + item] for item in items]
    assert tokens[1:].tolist() == np.concatenate(expected).tolist()
    assert loss.tolist() == [SILENT, *([SID_LOSS] * 3 + [SILENT]) * len(items)]
    assert (branch[1:].reshape(-1, 4)[:, :3] > 0).all()
    assert (branch[1:].reshape(-1, 4)[:, 3] == 0).all()
    assert rows.places[span].tolist() == [0, *(p for t in range(len(items)) for p in (t + 1, t + 2, t + 3, t + 1))]


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_what_is_read_is_merged_and_what_is_said_is_not(template):
    policy = reading(template)
    context = TaskContext(LOG, CATALOGUE, 4, chat=template == "chat")
    renderer = Renderer.of(policy)
    for name in ("history_to_title", "title_to_sid", "caption"):
        rows = renderer.render(TASKS[name](context))
        whole = rows.tokens >= FIRST_ITEM
        said = np.isin(rows.tokens, policy.tokens.item_tokens)
        assert not (rows.loss[whole] != SILENT).any()
        assert (rows.loss[said] == SID_LOSS).all()
        assert whole.any() == (name != "title_to_sid")
        assert said.any() == (name == "title_to_sid")
    assert torch.isfinite(packed_loss(policy, renderer.render(TASKS["retrieval"](context)))[0])


def test_a_chats_answer_is_predicted_from_what_a_rollout_reads():
    policy = reading("chat")
    rows = Renderer.of(policy).render(TASKS["retrieval"](TaskContext(LOG, CATALOGUE, 4, chat=True)))
    span = slice(rows.offsets[3], rows.offsets[4])
    trunk = rows.tokens[span][rows.branch[span] == 0]
    answer = np.flatnonzero(np.isin(trunk, policy.tokens.item_tokens))
    items = trunk[trunk >= FIRST_ITEM] - FIRST_ITEM
    ids, mask = policy.tokens.prompts(items[None])
    assert mask.all()
    assert trunk[: answer[0]].tolist() == ids[0].tolist()


def test_unmerged_policies_render_steps_as_they_always_did():
    policy = toy_policy(toy_table(20), scale=2.0)
    rows = rendered(policy)
    assert rows.branch is None
    assert rows.tokens.max() < FIRST_ITEM
    assert (rows.loss != SILENT).sum() == len(LOG.items) * policy.levels


def test_training_learns_the_merger_and_goes_on_to_the_bit(tmp_path):
    valid = toy_episodes(6, 20, length=4)
    config = SftConfig(epochs=2, batch=4, lr=1e-2, eval_users=6, patience=9, checkpoint_every=2)

    def trained(name, stop=None):
        policy = merging(dropout=0.2)

        def kill(step, steps, text):
            if step == stop:
                raise KeyboardInterrupt

        return policy, train_sft(policy, LOG, valid, config, 4, 0, kill, directory=tmp_path / name)

    policy, result = trained("whole")
    assert not torch.equal(merger_of(policy.model).weight, merger_of(merging().model).weight)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    with pytest.raises(KeyboardInterrupt):
        trained("killed", stop=3)
    assert checkpoints(tmp_path / "killed")
    again, other = trained("killed")
    assert other.history == result.history
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize("settings", [{"frozen": True}, {"lora_rank": 2}])
def test_where_little_is_trained_the_merger_is(settings):
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    policy = merging()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    config = SftConfig(epochs=1, batch=16, lr=1e-2, eval_users=2, **settings)
    train_sft(policy, LOG, toy_episodes(4, 20, length=4), config, 4, 0)
    after = policy.model.state_dict()
    assert not torch.equal(after["item_merger.weight"], before["item_merger.weight"])
    inner = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[inner], before[inner]) == ("frozen" in settings)


def test_histories_of_a_merging_policy_are_packed_whatever_the_setting():
    config = SftConfig(normalise="sid", epochs=1, eval_users=2)
    policy = merging()
    assert isinstance(make_feed(policy, LOG, config, 4, 0), ExampleFeed)
    with pytest.raises(ValueError, match=r"set sft\.packed = true"):
        check_sft(config)
    figures = train_sft(policy, LOG, toy_episodes(4, 20, length=4), config, 4, 0).history[0]
    assert figures["tokens/retrieval"] == len(LOG.items) * policy.levels
    assert figures["examples/retrieval"] > 0
    with pytest.raises(ValueError, match=r"this policy merges items: set sft\.packed = true"):
        history_loss(merging(), np.array([[1, 2, PAD_ITEM]]))


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_positions_predictors_and_needs_are_what_the_mask_says(examples, random):
    """Each example is an opening token and steps, a step a branch of so many tokens and one of the trunk."""
    branch, offsets, number = [], [0], 0
    for steps in examples:
        branch.append(0)
        for size in steps:
            number += 1
            branch += [number] * size + [0]
        offsets.append(len(branch))
    numbers, ends = np.array(branch), np.array(offsets)
    visible = np.zeros((len(branch), len(branch)), dtype=bool)
    for begin, end in itertools.pairwise(ends):
        visible[begin:end, begin:end] = sees(torch.from_numpy(numbers[None, begin:end]))[0].numpy()
    assert (positions(ends, numbers) == visible.sum(1) - 1).all()
    before = predictors(ends, numbers)
    assert (before[ends[:-1]] == -1).all()
    for token in range(len(branch)):
        if token not in ends[:-1]:
            others = visible[token].copy()
            others[token] = False
            assert (visible[before[token]] == others).all(), "a token is predicted from what sees all that it may see"
    wanted = np.array(sorted(random.sample(range(len(branch)), random.randint(1, len(branch)))))
    assert (needed(ends, numbers, wanted) == visible[wanted].any(0)).all()
