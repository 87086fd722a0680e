"""The collaborative model: what it learns of a chain whose optimum is known, its ranking, and its windows."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidgym.envs import item_softmax
from sidgym.envs.preference import PreferenceData, fit_preference
from sidgym.envs.preference.examples import implicit_examples
from sidgym.envs.preference.sasrec import SasRecPreference, windows
from sidgym.envs.preference.sasrec_network import SasRecNetwork, SasRecShape, sampled_loss, softmax_loss
from sidgym.envs.records import PAD_ITEM, Interactions, Sequences

ITEMS = 8
STEP = np.array([0.7, 0.2, 0.1])
"""After item i comes i + 1, i + 2 or i + 3, modulo 8, with these probabilities."""
TRANSITION = np.array([[STEP[(j - i - 1) % ITEMS] if (j - i - 1) % ITEMS < 3 else 0.0 for j in range(ITEMS)]
                       for i in range(ITEMS)])  # fmt: skip
LEAST_LOSS = float(-(STEP * np.log(STEP)).sum())

SMALL: dict[str, Any] = {"history": 8, "width": 16, "layers": 1, "dropout": 0.0, "lr": 1e-2, "weight_decay": 0.0}


def chain_log(users: int = 300, length: int = 12, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    item = np.empty((users, length), dtype=np.int64)
    item[:, 0] = rng.integers(ITEMS, size=users)
    for place in range(1, length):
        item[:, place] = (item[:, place - 1] + 1 + rng.choice(3, size=users, p=STEP)) % ITEMS
    return Interactions(np.repeat(np.arange(users), length), item.reshape(-1), np.tile(np.arange(length), users))


def chain_data(log: Interactions) -> PreferenceData:
    return PreferenceData(log, np.unique(log.user), categories=np.zeros(ITEMS, dtype=np.int64))


@pytest.fixture(scope="module")
def model() -> Any:
    return fit_preference("sasrec", chain_data(chain_log()), 0, epochs=20, batch=64, **SMALL)


def test_it_reaches_the_optimum_of_a_markov_chain(model: Any) -> None:
    rng = np.random.default_rng(1)
    history = rng.integers(0, ITEMS, (200, 5))
    log_p = model.logits(history) - np.log(ITEMS)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-4)
    truth = TRANSITION[history[:, -1]]
    loss = -(truth * log_p).sum(axis=1).mean()
    # No model is below the chain's entropy.
    assert LEAST_LOSS <= loss < LEAST_LOSS + 0.05
    # The first event of a user is uniform; of the other eleven the best loss is the entropy.
    best = (11 * LEAST_LOSS + np.log(ITEMS)) / 12
    assert model.report["held_out_loss"] == pytest.approx(best, abs=0.12)


def test_items_come_in_the_order_of_the_chain(model: Any) -> None:
    history = np.array([[PAD_ITEM, 5, 3], [1, 2, 6]])
    items, log_p = model.rank_items(history, 3)
    assert items.tolist() == [[4, 5, 6], [7, 0, 1]]
    np.testing.assert_allclose(np.exp(log_p), [STEP, STEP], atol=0.06)
    with pytest.raises(ValueError, match="k should be between 1 and the 8 items, got 9"):
        model.rank_items(history, 9)


def test_its_scores_keep_the_order_and_tell_positives_from_sampled_negatives(model: Any) -> None:
    history = np.repeat(np.arange(ITEMS)[:, None], 3, axis=1)
    scores = model.score(history, np.broadcast_to(np.arange(ITEMS), (ITEMS, ITEMS)))
    assert (scores[np.arange(ITEMS), (np.arange(ITEMS) + 1) % ITEMS] == scores.max(axis=1)).all()
    assert model.report["auc"] > 0.85
    # Few: nearly every item is liked, so that hardly any negative is left to draw.
    assert model.report["ece"] < 0.15


def test_logits_of_some_items_are_those_of_all(model: Any) -> None:
    rng = np.random.default_rng(2)
    history, items = rng.integers(-1, ITEMS, (5, 20)), rng.integers(0, ITEMS, (5, 4))
    all_ = model.logits(history)
    np.testing.assert_allclose(model.logits(history, items), np.take_along_axis(all_, items, axis=1), atol=1e-5)
    # Only the last eight items count.
    np.testing.assert_allclose(all_, model.logits(history[:, -8:]), atol=1e-5)


def test_the_sampled_loss_learns_the_order_too() -> None:
    model: Any = fit_preference("sasrec", chain_data(chain_log()), 0, loss="sampled", epochs=20, batch=64, **SMALL)
    items, _ = model.rank_items(np.arange(ITEMS)[:, None], 1)
    assert (items[:, 0] == (np.arange(ITEMS) + 1) % ITEMS).all()
    assert model.report["loss"] == "sampled"


def test_sequences_are_the_same_as_a_log() -> None:
    log = chain_log(users=30)
    order = np.random.default_rng(0).permutation(30)
    sequences = Sequences(order, log.item.reshape(30, -1)[order].reshape(-1), np.arange(31) * 12)
    short = {**SMALL, "epochs": 1}
    one = SasRecPreference.fit(chain_data(log), 4, **short)
    two = SasRecPreference.fit_sequences(sequences, ITEMS, 4, **short)
    history = np.arange(ITEMS)[:, None]
    np.testing.assert_array_equal(one.logits(history), two.logits(history))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5))
def test_every_event_is_a_target_once_and_never_its_own_input(lengths: list[int], length: int) -> None:
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = np.arange(len(user))
    order = np.concatenate([np.arange(count) for count in lengths])
    data = PreferenceData(Interactions(user, item, order), np.arange(len(lengths)), embeddings=np.eye(len(user)))
    before, target = windows(implicit_examples(data, 1), length)
    assert before.shape == target.shape
    assert target.shape[1] <= length
    assert sorted(target[target != PAD_ITEM].tolist()) == item.tolist()
    first = np.isin(target, np.flatnonzero(order == 0))
    # Items are numbered along the log: the input of a target is the one before it, or none for a user's first.
    assert (before[(target != PAD_ITEM) & ~first] == target[(target != PAD_ITEM) & ~first] - 1).all()
    assert (before[first] == PAD_ITEM).all()


def network(items: int = 11) -> SasRecNetwork:
    torch.manual_seed(0)
    return SasRecNetwork(SasRecShape(items, history=6, width=8, layers=2, heads=2, dropout=0.0)).eval()


def test_a_state_does_not_see_what_comes_after_it_nor_padding() -> None:
    net = network()
    items = torch.tensor([[3, 1, 4, 1, 5, 9]])
    states = net(items)
    changed = items.clone()
    changed[0, 4:] = 7
    torch.testing.assert_close(net(changed)[:, :4], states[:, :4])
    assert not torch.allclose(net(changed)[:, 4:], states[:, 4:])
    padded = torch.tensor([[PAD_ITEM, PAD_ITEM, 4, 1, 5, 9], [2, 2, 4, 1, 5, 9]])
    torch.testing.assert_close(net.last(padded)[:1], net.last(torch.tensor([[4, 1, 5, 9]])))
    assert not torch.allclose(net.last(padded)[0], net.last(padded)[1])


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    import sidgym.envs.preference.sasrec_network as module

    net = network()
    states, targets = torch.randn(7, 8, generator=torch.Generator().manual_seed(1)), torch.arange(7)
    logits = states @ net.item.weight.T
    wanted = -torch.log_softmax(logits, dim=1)[torch.arange(7), targets].mean()
    torch.testing.assert_close(softmax_loss(net, states, targets), wanted)
    torch.testing.assert_close(net.normaliser(states), logits.logsumexp(dim=1))
    gradient = torch.autograd.grad(wanted, net.item.weight, retain_graph=True)[0]
    # In parts of two targets and of two items the loss, the gradient and the normaliser are the same.
    for part in (module, item_softmax):
        monkeypatch.setattr(part, "CELLS", 22)
    parts = softmax_loss(net, states.requires_grad_(), targets)
    torch.testing.assert_close(parts, wanted)
    torch.testing.assert_close(torch.autograd.grad(parts, net.item.weight)[0], gradient)
    torch.testing.assert_close(net.normaliser(states), logits.logsumexp(dim=1))
    negatives = torch.tensor([[8, 9]] * 7)
    own, others = logits[torch.arange(7), targets].sigmoid(), logits[:, 8:10].sigmoid()
    by_hand = (-own.log() - (1 - others).log().mean(dim=1)).mean()
    torch.testing.assert_close(sampled_loss(net, states, targets, negatives), by_hand)


def test_long_histories_are_scored_in_parts_of_the_contexts(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    import sidgym.envs.preference.sasrec as module

    rng = np.random.default_rng(3)
    history, items = rng.integers(0, ITEMS, (9, 10_000)), rng.integers(0, ITEMS, (9, 3))
    whole = model.logits(history, items)
    rows: list[int] = []
    real = SasRecNetwork.last
    monkeypatch.setattr(SasRecNetwork, "last", lambda net, part: (rows.append(len(part)), real(net, part))[1])
    model.logits(history, items)
    # Only the last eight items of a history count for memory.
    assert rows == [9]
    monkeypatch.setattr(module, "CELLS", 2048)
    np.testing.assert_allclose(model.logits(history, items), whole, atol=1e-5)
    assert rows[1:] == [4, 4, 1]


def test_settings_that_do_not_fit_are_refused() -> None:
    data = chain_data(chain_log(users=6))
    for wrong in ({"loss": "hinge"}, {"width": 15}, {"layers": 0}, {"history": 0}):
        with pytest.raises(ValueError, match="preference 'sasrec': loss must be one of softmax, sampled"):
            fit_preference("sasrec", data, **wrong)
    with pytest.raises(ValueError, match="lower lr"):
        fit_preference("sasrec", data, lr=1e30, epochs=1)
