"""What the baselines are made of: windows, batches, losses, kNN, HSTU and TIGER against plain counts and loops."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidgym.benchmarks.baselines import item_knn, sequential, tiger
from sidgym.benchmarks.baselines.bert4rec import Bert4RecNetwork, Bert4RecSettings
from sidgym.benchmarks.baselines.dropout import Dropout, dropped
from sidgym.benchmarks.baselines.hstu import HstuLayer, HstuNetwork, HstuSettings
from sidgym.benchmarks.baselines.protocol import BaselineData
from sidgym.benchmarks.baselines.tiger_network import TigerNetwork, TigerShape
from sidgym.benchmarks.baselines.training import Plan
from sidgym.envs import item_softmax
from sidgym.envs.records import PAD_ITEM, Episodes, Sequences
from sidgym.sid.trie import Trie

ROWS = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=11), min_size=1, max_size=6)


def sequences(rows: list[list[int]]) -> Sequences:
    offsets = np.cumsum([0, *map(len, rows)])
    return Sequences(np.arange(len(rows)), np.array([i for row in rows for i in row], dtype=np.int64), offsets)


def nobody() -> Episodes:
    return Episodes(*(np.zeros((0,), np.int64),) * 2, *(np.zeros((0, 1), np.int64),) * 2)


@given(ROWS, st.integers(1, 5))
def test_windows_hold_every_pair_of_neighbours_once(rows: list[list[int]], length: int) -> None:
    found = sequential.windows(sequences(rows), length)
    before, after = found[:, :-1], found[:, 1:]
    both = (before != PAD_ITEM) & (after != PAD_ITEM)
    expected = sorted(pair for row in rows for pair in itertools.pairwise(row))
    assert sorted(zip(before[both].tolist(), after[both].tolist())) == expected
    assert both.any(axis=1).all()
    assert both.sum(axis=1).max(initial=0) <= length
    real = found != PAD_ITEM
    assert (np.diff(real.astype(int), axis=1) >= 0).all()  # padding stands on the left only


@given(ROWS, st.integers(1, 5))
def test_prefixes_are_what_stands_before_each_event(rows: list[list[int]], length: int) -> None:
    examples = tiger.Prefixes(sequences(rows), length)
    expected = [(row[max(0, at - length) : at], row[at]) for row in rows for at in range(1, len(row))]
    assert examples.length.tolist() == [len(history) for history, _ in expected]
    if expected:
        history, target = examples[np.arange(len(expected))]
        assert [[i for i in row if i != PAD_ITEM] for row in history.tolist()] == [row for row, _ in expected]
        assert target.tolist() == [item for _, item in expected]


@given(st.integers(0, 200), st.integers(1, 7))
def test_batches_hold_every_row_once(rows: int, batch: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 20, rows)
    parts = list(sequential.alike(lengths, batch, np.random.default_rng(1)))
    assert sorted(np.concatenate([np.zeros(0, int), *parts]).tolist()) == list(range(rows))
    assert all(1 <= len(part) <= batch for part in parts)


def test_the_loss_in_parts_is_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = HstuNetwork(7, HstuSettings(width=8, heads=2, head_width=4, layers=1, dropout=0.0, history=4))
    rows = torch.tensor([[PAD_ITEM, 1, 2, 3], [4, 5, 6, 0]])
    whole = network.loss(rows)
    gradient = torch.autograd.grad(whole, network.item.weight)[0]
    monkeypatch.setattr(item_softmax, "CELLS", 14)
    parts = network.loss(rows)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(parts, network.item.weight)[0], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "network",
    [
        lambda: HstuNetwork(7, HstuSettings(width=8, heads=2, head_width=4, layers=1, dropout=0.0, history=4)),
        lambda: Bert4RecNetwork(7, Bert4RecSettings(width=8, layers=1, dropout=0.0, history=4)),
    ],
)
def test_the_loss_is_cross_entropy_of_the_scores_that_rank(network: Any) -> None:
    torch.manual_seed(0)
    made = network()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    states, targets = torch.randn(5, 8), torch.tensor([0, 3, 6, 6, 2])
    wanted = torch.nn.functional.cross_entropy(made.logits(states), targets)
    loss = made.softmax_loss(states, targets)
    torch.testing.assert_close(loss, wanted)
    by_items = (torch.autograd.grad(one, made.item.weight)[0] for one in (loss, wanted))
    torch.testing.assert_close(*by_items)


def test_a_plan_warms_up_and_falls() -> None:
    plan = Plan(lr=1.0, warmup=4, inverse_sqrt=True)
    assert [plan.rate(step) for step in (0, 1, 3, 15)] == [0.25, 0.5, 1.0, 0.5]
    assert Plan(lr=1.0).rate(1000) == 1.0


@given(ROWS, st.integers(1, 9), st.floats(0, 5), st.floats(0.3, 1))
def test_item_knn_equals_plain_loops(rows: list[list[int]], neighbours: int, shrink: float, decay: float) -> None:
    data = BaselineData(sequences(rows), nobody(), 9)
    model = item_knn.ItemKnn.fit(data, neighbours=neighbours, shrink=shrink, decay=decay)
    users = [{u for u, row in enumerate(rows) if item in row} for item in range(9)]
    like = np.zeros((9, 9))
    for i, j in itertools.permutations(range(9), 2):
        if users[i] & users[j]:
            like[i, j] = len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + shrink)
    for i in range(9):
        if neighbours < 9:
            like[i, like[i] < np.sort(like[i])[-neighbours] - 1e-9] = 0
    assert np.allclose(model.likeness.toarray(), like, atol=1e-6)
    scores = like[3] + decay * like[1]
    listed = scores[model.rank(np.array([[PAD_ITEM, 1, 3]]), 9)[0]]
    assert (np.diff(listed) <= 1e-6).all()


def test_hstu_is_its_equations() -> None:
    """One head, by loops over places."""
    plan = HstuSettings(width=3, heads=1, head_width=2, layers=1, dropout=0.0, history=4)
    layer, silu = HstuLayer(plan).double().eval(), torch.nn.functional.silu
    x = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.arange(3)
    allowed = (places[:, None] >= places)[None, None]
    found = layer(x, allowed, (places[:, None] - places).clamp(min=0))
    u, v, q, k = silu(layer.project_in(layer.norm(x[0]))).split(2, dim=-1)
    for at in range(3):
        mixed = sum(silu(q[at] @ k[j] + layer.distance[0, at - j]) / 4 * v[j] for j in range(at + 1))
        expected = x[0, at] + layer.project_out(layer.inner_norm(mixed) * u[at])
        assert torch.allclose(found[0, at], expected)


def small_tiger(codes: np.ndarray, sizes: tuple[int, ...], normalise: str = "vocab", beam: int = 50) -> tiger.Tiger:
    torch.manual_seed(0)
    network = TigerNetwork(TigerShape(sizes, 8, 2, 2, 4, 16, 0.0), torch.from_numpy(codes))
    return tiger.Tiger(network, Trie.from_codes(codes, sizes), tiger.TigerSettings(normalise=normalise, beam=beam))


CODES = np.array([[0, 0, 0], [0, 1, 2], [1, 0, 1], [2, 2, 2], [2, 2, 0], [2, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("normalise", ["vocab", "trie"])
def test_wide_beams_of_tiger_rank_by_the_probability_of_whole_sids(normalise: str) -> None:
    model = small_tiger(CODES, (3, 3, 3), normalise)
    history = np.array([[PAD_ITEM, 3, 1], [5, 0, 2]])
    network, scores = model.network, np.zeros((2, len(CODES)))
    with torch.no_grad():
        memory = network.encode(torch.from_numpy(history))
        states = network.decode(memory, torch.from_numpy(CODES)[None, :, :-1].expand(2, -1, -1))
        for item, row in enumerate(CODES):
            for level in range(3):
                logits = network.logits(states[:, item, level], level)
                if normalise == "trie":
                    same = (CODES[:, :level] == row[:level]).all(axis=1)
                    absent = np.setdiff1d(np.arange(3), CODES[same, level])
                    logits[:, torch.from_numpy(absent)] = -math.inf
                scores[:, item] += logits.log_softmax(-1)[:, row[level]].numpy()
    assert (model.rank(history, 7) == np.argsort(-scores, axis=1)).all()


def test_prefixes_of_one_context_do_not_see_each_other_nor_padding() -> None:
    network = small_tiger(CODES, (3, 3, 3)).network
    history = torch.tensor([[PAD_ITEM, 3, 1], [5, 0, 2]])
    prefixes = torch.tensor([[[0, 1], [2, 2]], [[1, 0], [0, 0]]])
    with torch.no_grad():
        both = network.decode(network.encode(history), prefixes)
        alone = network.decode(network.encode(history[:1, 1:]), prefixes[:1, 1:])
    assert both.shape == (2, 2, 3, 8)
    assert torch.allclose(both[:1, 1:], alone, atol=1e-5)


def test_narrow_beams_leave_the_end_of_the_list_empty_and_shared_sids_follow_each_other() -> None:
    codes = np.array([[0, 0], [0, 0], [1, 0], [1, 1]])
    model = small_tiger(codes, (2, 2), beam=1)
    items = model.rank(np.array([[0, 2]]), 4)[0].tolist()
    assert sorted(items) == [0, 1, 2, 3]
    assert items.index(1) == items.index(0) + 1
    tight = small_tiger(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2), beam=1)
    assert (tight.rank(np.array([[0, 2]]), 3) != PAD_ITEM).all()  # as many beams as places


class TestDropout:
    @given(st.floats(0, 0.999), st.integers(0, 2**31), st.lists(st.integers(0, 5), max_size=3))
    def test_values_are_kept_and_scaled_or_zero(self, rate: float, seed: int, shape: list[int]) -> None:
        torch.manual_seed(seed)
        x = torch.randn(shape).abs() + 0.1
        out = dropped(x, rate)
        kept = out != 0
        torch.testing.assert_close(out[kept], x[kept] / (1 - rate), rtol=0.01, atol=0)

    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
    def test_share_and_independence(self, rate: float) -> None:
        torch.manual_seed(0)
        zero = (dropped(torch.ones(1000, 1001), rate) == 0).double()
        spread = math.sqrt(rate * (1 - rate))
        assert abs(float(zero.mean()) - rate) <= 5 * spread / 1e3
        assert float((zero.mean(0) - rate).abs().max()) <= 6 * spread / 1000**0.5
        both = float((zero[:, 1:] * zero[:, :-1]).mean())  # neighbours share a word of the generator
        assert abs(both - rate**2) <= 5 * spread / 1e3

    def test_follows_torchs_generator_and_goes_backward(self) -> None:
        x = torch.randn(33, 7, requires_grad=True)
        torch.manual_seed(3)
        out = dropped(x, 0.3)
        torch.manual_seed(3)
        assert torch.equal(out, dropped(x, 0.3))
        assert not torch.equal(out, dropped(x, 0.3))
        (gradient,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(gradient, torch.where(out != 0, 1 / 0.7, 0.0), rtol=1e-4, atol=0)

    def test_only_in_training(self) -> None:
        x = torch.ones(50, 50)
        assert torch.equal(Dropout(0.5).eval()(x), x)
        assert not torch.equal(Dropout(0.5)(x), x)

    @pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
    def test_refuses_what_is_no_rate(self, rate: float) -> None:
        with pytest.raises(ValueError, match=r"rate of dropout in \[0, 1\)"):
            dropped(torch.ones(2), rate)


def test_tiger_trains_as_it_decides_without_dropout() -> None:
    """Attention is written out in training and torch's function else."""
    torch.manual_seed(0)
    codes = torch.randint(0, 5, (30, 3))
    network = TigerNetwork(TigerShape((5, 5, 5), 8, 2, 2, 4, 16, 0.0), codes)
    history = torch.randint(0, 30, (6, 4))
    history[:3, :2] = PAD_ITEM
    target = torch.randint(0, 30, (6,))
    trained = tiger.sid_loss(network.train(), history, target)
    judged = tiger.sid_loss(network.eval(), history, target)
    torch.testing.assert_close(trained, judged)
