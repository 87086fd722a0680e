"""Ways to train: what moves and what does not, parts of a step, going on after a kill, early stopping, what was
seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from text_toy import text_policy, text_store
from toy import TINY, toy_table

from sidgym.agents import sft
from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.policy import build_policy
from sidgym.agents.sft import check_training, make_feed, resumed_step, train_sft
from sidgym.agents.sft_learner import Learner
from sidgym.envs.records import Episodes, Sequences

CATALOGUE, LOG = text_store()
VALID = Episodes(np.arange(6), np.arange(6), np.arange(12).reshape(6, 2), np.arange(6)[:, None] + 10)
MIXED = SftConfig(
    tasks=("retrieval:0.5", "title_to_sid:0.3", "caption:0.2"), epochs=2, batch=6, warmup_steps=2, patience=9
)


def weights_of(policy):
    return {name: value.detach().clone() for name, value in policy.model.state_dict().items()}


def trained(config, directory=None, policy=None, on_metrics=None, stop_at=0):
    """Weights and result; ``stop_at`` breaks the run off when so many steps were reported."""
    policy = policy or text_policy()

    def progress(done, total, what):
        if stop_at and done == stop_at:
            raise KeyboardInterrupt

    arguments = {"catalogue": CATALOGUE, "directory": directory}
    result = train_sft(policy, LOG, VALID, config, 4, 1, progress, on_metrics, **arguments)
    return weights_of(policy), result


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def sid_rows(policy):
    return torch.cat([*(policy.level_ids(level) for level in range(3)), torch.tensor([policy.tokens.history])])


def test_a_mixture_trains_and_counts_what_it_saw():
    logged = []
    policy = text_policy()
    before = weights_of(policy)
    after, result = trained(MIXED, policy=policy, on_metrics=logged.append)
    assert not same(before, after)
    assert [row["epoch"] for row in logged] == [1, 2]
    assert logged == result.history
    assert logged[1]["train_loss"] < logged[0]["train_loss"]
    examples = {name: count for name, (count, _) in result.seen.items()}
    assert list(examples) == ["retrieval", "title_to_sid", "caption"]
    assert examples["title_to_sid"] == pytest.approx(0.6 * examples["retrieval"], abs=1.1)
    assert logged[-1]["examples/caption"] == examples["caption"] > logged[0]["examples/caption"]
    assert result.seen["title_to_sid"][1] == 3 * examples["title_to_sid"], "three codes each"
    assert f"{examples['caption']:,}" in result.table()


@pytest.mark.parametrize("config", [replace(MIXED, tokens_per_batch=200), SftConfig(batch=8)])
def test_parts_of_a_step_add_up_to_it(config):
    def stepped(most):
        policy = text_policy()
        feed = make_feed(policy, LOG, replace(config, tokens_per_microbatch=most), 4, 0, CATALOGUE)
        learner, batch = Learner(policy, config, 0), feed.epoch(0)[0]
        learner.begin(0)
        parts = feed.parts(batch)
        loss = learner.step([lambda p=p: feed.loss(policy, p) for p in parts], int(feed.counts(batch)[1].sum()), 0.0)
        return len(parts), loss, torch.cat([p.grad.flatten() for p in policy.model.parameters()])

    (one, whole, gradient), (several, added, sums) = stepped(0), stepped(20)
    assert one == 1
    assert several > 2
    assert added == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(gradient, sums, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("changes", [
    {},
    {"eval_every": 3},
    {"token_warmup_steps": 5},
    {"lora_rank": 2, "token_warmup_steps": 2},
    {"tasks": ("retrieval",), "epochs": 4, "batch": 4},
])  # fmt: skip
def test_a_killed_run_ends_as_one_that_was_not(changes, tmp_path):
    pytest.importorskip("peft")
    config = replace(MIXED, checkpoint_every=2, **changes)
    steps = []
    expected, straight = trained(config, tmp_path / "straight", dropped(), steps.append)
    logged = []
    for stop in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            trained(config, tmp_path / "killed", dropped(), logged.append, stop)
        done = resumed_step(tmp_path / "killed")
        logged = [row for row in logged if sft.log_step(row) <= done]  # what a log does when a run goes on
    weights, result = trained(config, tmp_path / "killed", dropped(), logged.append)
    assert same(weights, expected)
    assert result == straight
    assert logged == steps


def test_a_checkpoint_that_was_cut_off_is_put_aside(tmp_path, capfd):
    config, logged = replace(MIXED, checkpoint_every=2, eval_every=1), []
    expected, straight = trained(config, tmp_path / "straight", dropped())
    with pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path / "killed", dropped(), logged.append, 6)
    newest = sorted((tmp_path / "killed").glob("checkpoint-*"))[-1]
    whole = (newest / "training.safetensors").read_bytes()
    (newest / "training.safetensors").write_bytes(whole[: len(whole) // 2])
    assert resumed_step(tmp_path / "killed") == int(newest.name[-6:]) - 2
    weights, result = trained(config, tmp_path / "killed", dropped())
    assert same(weights, expected)
    assert result == straight
    assert "put aside" in capfd.readouterr().err


def dropped():
    """A policy with dropout, whose stream is to go on where it was."""
    policy = text_policy()
    policy.model.config.attention_dropout = 0.3
    for layer in policy.model.base_model.layers:
        layer.self_attn.attention_dropout = 0.3
    return policy


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_moves_the_rows_of_sids_and_nothing_else(tied):
    policy = text_policy()
    if not tied:
        policy = untied(policy)
    before = weights_of(policy)
    after, _ = trained(replace(MIXED, frozen=True, weight_decay=0.5), policy=policy)
    rows = sid_rows(policy)
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, value in before.items():
        moved = after[name] != value
        if name in tables:
            assert moved[rows].any(dim=1).all(), name
            moved = moved.clone()
            moved[rows] = False
        assert not moved.any(), name
    assert all(parameter.requires_grad for parameter in policy.model.parameters())


def untied(policy):
    from sidgym.agents.policy import Policy

    model = policy.model
    config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": False})
    torch.manual_seed(0)
    return Policy(type(model)(config), policy.tokenizer, policy.table).eval()


def test_token_warmup_holds_all_else_until_it_is_over():
    policy = text_policy()
    body = policy.model.base_model.layers[0].mlp.up_proj.weight
    start, moved = body.detach().clone(), []
    arguments = (LOG, VALID, replace(MIXED, token_warmup_steps=4, epochs=1, batch=3), 4, 1)
    train_sft(policy, *arguments, lambda *_: moved.append(not torch.equal(body, start)), catalogue=CATALOGUE)
    assert moved == [number > 4 for number in range(len(moved))]
    assert len(moved) > 6


def test_adapters_train_with_the_rows_and_leave_a_plain_model():
    pytest.importorskip("peft")
    policy = text_policy()
    before = weights_of(policy)
    after, _ = trained(replace(MIXED, lora_rank=2, epochs=4), policy=policy)
    assert set(before) == set(after), "no adapter is left"
    rows, table = sid_rows(policy), "model.embed_tokens.weight"
    moved = (after[table] != before[table]).any(dim=1)
    assert moved[rows].all()
    assert moved.sum() == len(rows)
    layer = "model.layers.0.mlp.up_proj.weight"
    rank = torch.linalg.matrix_rank(after[layer] - before[layer], tol=1e-6)
    assert 1 <= rank <= 2
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    with pytest.raises(ValueError, match="set one of them"):
        trained(replace(MIXED, lora_rank=2, frozen=True))


def test_bfloat16_passes_leave_weights_in_float32():
    exact, straight = trained(replace(MIXED, epochs=1))
    after, result = trained(replace(MIXED, epochs=1, precision="bfloat16"))
    assert result.history[0]["train_loss"] == pytest.approx(straight.history[0]["train_loss"], rel=0.02)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert not same(exact, after)


def test_the_rate_rises_anew_when_all_weights_begin_to_learn(monkeypatch):
    def rates_of(**changes):
        rates, step = [], Learner.step
        monkeypatch.setattr(
            Learner, "step", lambda own, losses, count, rate: rates.append(rate) or step(own, losses, count, rate)
        )
        trained(replace(MIXED, epochs=1, batch=3, warmup_steps=3, lr=1.0, **changes))
        monkeypatch.setattr(Learner, "step", step)
        return rates

    usual, anew = rates_of(), rates_of(token_warmup_steps=4)
    assert rates_of(token_warmup_steps=4, frozen=True) == usual
    assert len(anew) > 8
    assert anew[:4] == usual[:4]
    assert anew[4:6] == pytest.approx([1 / 3, 2 / 3])
    assert anew[7:] == usual[7:]


def test_what_this_machine_or_the_checkpoint_lacks_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    check_training(SftConfig(), PolicyConfig())
    with pytest.raises(ValueError, match=r"set policy\.path to an instruct checkpoint"):
        check_training(SftConfig(template="chat"), PolicyConfig())
    tokenizer = text_policy().tokenizer
    tokenizer.save_pretrained(tmp_path / "chat")
    check_training(SftConfig(template="chat"), PolicyConfig(path=str(tmp_path / "chat")))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
        check_training(SftConfig(template="chat"), PolicyConfig(path=str(tmp_path / "plain")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU here"):
        check_training(SftConfig(device="cuda"), PolicyConfig())
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sft\.lora_rank needs peft"):
        check_training(SftConfig(lora_rank=2), PolicyConfig())


def test_training_stops_after_patience_validations_and_keeps_the_best(monkeypatch):
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    kept = {}

    def judged(policy, valid, config):
        score = next(scores)
        kept[score] = weights_of(policy)
        return {"eval/ndcg@10": score}

    monkeypatch.setattr(sft, "validate", judged)
    after, result = trained(replace(MIXED, eval_every=2, patience=2, epochs=5))
    assert [row["eval/ndcg@10"] for row in result.history] == [0.1, 0.3, 0.2, 0.25]
    assert [row["step"] for row in result.history] == [2, 4, 6, 8]
    assert same(after, kept[0.3])


def test_packed_retrieval_learns_a_law():
    items = 12
    starts = np.random.default_rng(0).integers(0, items, 60)
    log = Sequences(np.arange(60), np.concatenate([(s + np.arange(6)) % items for s in starts]), np.arange(61) * 6)
    history = np.arange(items)[:, None]
    valid = Episodes(np.arange(items), np.arange(items), history, (history + 1) % items)
    policy = build_policy(TINY, toy_table(items, (3, 4)), 0)
    config = SftConfig(
        epochs=12, tokens_per_batch=160, lr=1e-2, warmup_steps=5, patience=20, packed=True, normalise="sid"
    )
    result = train_sft(policy, log, valid, config, history=5, seed=0)
    assert max(row["eval/ndcg@10"] for row in result.history) > 0.95


def test_settings_of_packed_passes_are_refused_without_them():
    with pytest.raises(ValueError, match=r"sft\.packed = true"):
        trained(SftConfig(tokens_per_batch=100))
    with pytest.raises(ValueError, match=r"sft\.packed = true"):
        trained(SftConfig(normalise="sid"))
