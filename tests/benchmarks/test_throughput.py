"""What the throughput benchmark compares is the same work, and its picture can be drawn."""

import pytest
import torch

from sidgym.benchmarks.contenders import LOOK_UPS, Case, Contest, Timer
from sidgym.benchmarks.throughput import gradient_difference, logp_difference, rollout_arms
from sidgym.benchmarks.throughput_figure import draw
from sidgym.sid.trie import Trie

SMALL = Case(contexts=3, prompt=10, group=4, items=300)


@pytest.fixture(scope="module")
def contest() -> Contest:
    return Contest(SMALL)


def test_contestants_give_the_same_numbers(contest):
    arms = rollout_arms(contest)
    for name in ("hf", "hf_best"):
        assert logp_difference(arms["torch"](), arms[name]()) < 1e-5
    assert gradient_difference(contest) < 1e-5


def test_usual_iteration_and_ours_do_every_part_of_the_work(contest):
    for number, usual in enumerate((False, True), start=1):
        contest.iteration(usual)()
        for parameter in contest.policy.model.parameters():
            assert parameter.grad is not None
            assert contest.optimizer.state[parameter]["step"] == number


def test_token_limit_is_the_ratio_of_tokens_that_are_fed():
    case = Case()
    assert case.prompt_tokens == 121
    assert case.limit == pytest.approx(16 * (121 + 2) / (121 + 16 * 2))
    assert Case(prompt=2000).prompt_tokens == 1999


def test_look_ups_are_timed_once_each_and_left_as_they_were(contest):
    before = Trie.children_mask, Trie.path
    ticks = iter(range(10_000))
    with Timer(lambda: next(ticks), Trie, LOOK_UPS) as looked_up:
        contest.policy.trie.leaf_of(torch.zeros(2, 3, dtype=torch.long))  # steps inside are part of it
    assert looked_up.seconds == 1
    assert (Trie.children_mask, Trie.path) == before


def test_picture_is_drawn_from_a_result_with_a_sweep(tmp_path):
    arm = {"rollout": {"hf_best_ratio": 20.0}, "update": {"replicated_ratio": 15.0}, "limit": 12.9}
    cases = [(30, 16), (120, 16), (120, 4)]
    result = {
        "case": {"prompt": 120, "group": 16},
        "sweep": [{"prompt": p, "group": g, **arm} for p, g in cases],
        "update_memory": [
            {"group": 4, "packed": 2**25, "replicated": 2**27},
            {"group": 512, "packed": 2**26, "replicated": None},
        ],
    }
    draw(result, tmp_path / "a.svg")
    draw(result, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(ValueError, match="needs the sweep"):
        draw({"update_memory": []}, tmp_path / "c.svg")
