"""The arithmetic of the projection, what the scaling benchmark measures with, and the page that quotes both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidgym.agents.config import PolicyConfig
from sidgym.agents.packed import packed_logp
from sidgym.agents.policy import build_policy
from sidgym.agents.rl import TorchTrainer
from sidgym.agents.update import GroupBatch
from sidgym.benchmarks import projection, scaling, scaling_parts
from sidgym.benchmarks.cost_model import (
    LARGE,
    SMALL,
    Cluster,
    Plan,
    Workload,
    activation_bytes,
    forward_flops,
    in_turn,
    overlapped,
)
from sidgym.benchmarks.scaling_parts import INSIDE, Kept, Stopwatch, counted_flops, decoder_of, share_outside
from sidgym.launch.config import load_config
from sidgym.sid.table import SidTable

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scaling.md"
RESULT = ROOT / "benchmarks" / "results" / "scaling.json"
CODES, LEVELS, CANDIDATES = 4, 3, 4

in_checkout = pytest.mark.skipif(not PAGE.exists(), reason="the wheel carries no pages")
measured = pytest.mark.skipif(not RESULT.exists(), reason="no stored result here")
gpus = st.integers(2, 300)
models = st.sampled_from([SMALL, LARGE])


def plan(model=SMALL, **changes) -> Plan:
    return Plan(model, Workload(), replace(Cluster(), **changes))


@pytest.fixture(scope="module")
def policy():
    """Every SID is taken, so that no code is certain."""
    codes = np.stack(np.unravel_index(np.arange(CODES**LEVELS), (CODES,) * LEVELS), axis=1)
    table = SidTable(codes, (CODES,) * LEVELS, np.arange(len(codes)).astype(str))
    shape = PolicyConfig(hidden_size=64, intermediate_size=160, layers=3, heads=4, kv_heads=2)
    policy = build_policy(shape, table, 0)
    packed_logp(policy, np.array([[27]]), torch.zeros(1, 1, LEVELS, dtype=torch.long))  # the first pass checks itself
    return policy


@pytest.fixture(scope="module")
def group():
    """One item of history, and candidates that share no code: as many tokens as the formula counts."""
    codes = np.repeat(np.arange(CANDIDATES)[:, None], LEVELS, axis=1)[None]
    return np.array([[27]]), torch.from_numpy(codes)


def test_formula_counts_the_operations_of_a_forward_pass(policy, group):
    flops, _ = counted_flops(lambda: packed_logp(policy, *group))
    expected = forward_flops(decoder_of(policy), 1 + LEVELS, CANDIDATES * (LEVELS - 1), CODES)
    assert flops == pytest.approx(expected, rel=0.02)


def test_backward_pass_takes_twice_as_many(policy, group):
    forward, scores = counted_flops(lambda: packed_logp(policy, *group))
    backward, _ = counted_flops(scores.logp.sum().backward)
    assert backward == pytest.approx(2 * forward, rel=0.1)


def test_kept_bytes_are_near_the_formula_and_hold_no_weights(policy, group):
    with Kept(policy) as kept:
        scores = packed_logp(policy, *group)
    tokens = 1 + LEVELS + CANDIDATES * (LEVELS - 1)
    assert kept.bytes == pytest.approx(tokens * activation_bytes(decoder_of(policy), 4, False), rel=0.4)
    own = {weight.untyped_storage().data_ptr() for weight in policy.model.parameters()}
    assert own.isdisjoint(kept.sizes)
    scores.logp.sum().backward()  # what was kept is still there


def test_shapes_are_those_of_qwen():
    assert SMALL.weights == pytest.approx(494e6, rel=0.01)
    assert LARGE.weights == pytest.approx(7_616e6, rel=0.01)


def test_tokens_and_bytes_of_a_context():
    work = Workload(prompt=256, group=16, levels=3)
    assert (work.tokens, work.usual_tokens) == (256 + 32, 16 * 258)
    items = 85
    wide = {"history": (3, items), "targets": (3, 1), "codes": (3, 16, 3), "context": (3,), "version": (3,)}
    other = {"valid": (3, 16), "old_logp": (3, 16, 3), "advantage": (3, 16), "weight": (3, 16)}
    batch = GroupBatch(
        **{name: np.zeros(shape, dtype=np.int64) for name, shape in wide.items()},
        **{name: np.zeros(shape, dtype=bool if name == "valid" else np.float32) for name, shape in other.items()},
    )
    assert sum(values.nbytes for values in vars(batch).values()) == 3 * work.group_bytes


def test_small_model_is_replicated_and_the_large_one_sharded():
    assert not plan(SMALL).sharded
    assert plan(LARGE).sharded
    for model in (SMALL, LARGE):
        assert plan(model).gpu_bytes(8) < 0.9 * Cluster().memory
    assert plan(LARGE).gpu_bytes(64) < plan(LARGE).gpu_bytes(8)


@given(models, gpus)
def test_in_turn_everything_adds_up(model, count):
    one = in_turn(plan(model), count)
    assert one.seconds == pytest.approx(sum(one.parts.values()))
    assert one.parts[one.bottleneck] == max(one.parts.values())


@given(gpus)
def test_overlapped_lasts_as_long_as_the_slower_side(count):
    one = overlapped(plan(), count)
    assert one.runners + one.learners == count
    drawing = one.parts["rollouts"] + one.parts["weights in"]
    assert one.seconds == pytest.approx(max(drawing, sum(one.parts.values()) - drawing))
    assert one.bottleneck in one.parts
    for runners in {1, count // 2, count - 1}:
        other = Plan(SMALL, Workload(), Cluster())
        assert one.seconds <= max(
            other.rollout(runners) + other.weights_in(runners),
            other.passed(count - runners)
            + other.exchange(count - runners)
            + other.optimiser(count - runners)
            + other.weights_out()
            + other.driver(runners, count - runners),
        ) * (1 + 1e-9)


@given(models, st.integers(1, 9))
def test_twice_the_gpus_take_half_the_time_for_the_same_operations(model, power):
    cheap = plan(model, kernel=0.0)
    assert cheap.passed(2**power) == pytest.approx(2 * cheap.passed(2 ** (power + 1)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rollouts", {"mfu_rollout": 1e-6}),
        ("forward and backward", {"mfu_update": 1e-6}),
        ("weights out", {"hand": 1e5}),
        ("weights in", {"take": 1e5}),
        ("driver", {"call": 1e3}),
    ],
)
def test_bottleneck_is_what_is_slow(name, changes):
    slow = plan(**changes)
    assert in_turn(slow, 16).bottleneck == overlapped(slow, 16).bottleneck == name


def test_marked_part_of_a_page_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{projection.marked('one', 'old')}\n{projection.marked('two', 'kept')}\nafter\n")
    projection.write_marked(page, "one", "new")
    new = f"before\n{projection.marked('one', 'new')}\n{projection.marked('two', 'kept')}\nafter\n"
    assert page.read_text() == new
    with pytest.raises(ValueError, match="expected the marks"):
        projection.write_marked(page, "three", "new")


@in_checkout
def test_page_quotes_what_the_projection_prints():
    text, figures = projection.project()
    assert projection.marked("projection", text) in PAGE.read_text()
    assert set(figures["models"]) == {"0.5B", "7B"}
    json.dumps(figures)


@in_checkout
@measured
def test_page_quotes_what_was_measured():
    result = json.loads(RESULT.read_text())
    assert not result["quick"]
    assert projection.marked("scaling", scaling.report(result)) in PAGE.read_text()


@measured
def test_measured_figures_reach_their_targets_and_bear_out_the_formula():
    result = json.loads(RESULT.read_text())
    assert result["rllib_overhead_share"] <= 0.1
    assert result["runners_2_vs_1"] >= 1.7
    assert result["learners_2_max_weight_diff"] <= 1e-6 < result["learners"]["weights_moved"]
    assert result["rllib_max_weight_diff"] == 0
    assert result["runners"]["same_groups"]
    assert result["counted"]["0.5B"]["forward_flops_over_formula"] == pytest.approx(1, abs=0.1)


def test_measured_rates_are_rounded_to_the_slow_side(tmp_path):
    assert projection.slower(4.7e8) == pytest.approx(4e8)
    assert projection.slower(1e9) == pytest.approx(1e9)
    assert projection.cluster_of(tmp_path / "none.json") == Cluster()
    stored = tmp_path / "scaling.json"
    sending = {"hand_bytes_per_s": 4.7e8, "take_bytes_per_s": 2.2e9}
    stored.write_text(json.dumps({"sending": sending, "runners": {"put_bytes_per_s": 1.5e9, "call_s": 4.4e-4}}))
    cluster = projection.cluster_of(stored)
    assert (cluster.hand, cluster.take, cluster.pickle) == pytest.approx((4e8, 2e9, 1e9))
    assert cluster.call == pytest.approx(5e-4)
    assert cluster.peak == Cluster().peak


def test_demonstration_is_measured_as_it_is_configured():
    assert scaling_parts.demo_rl() == load_config(Path("demo")).rl


class Clock:
    """Each reading is one second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Work:
    def inner(self) -> int:
        return 1

    def outer(self) -> int:
        return self.inner() + self.inner()


def test_stopwatch_counts_the_outer_of_nested_calls_and_puts_everything_back():
    before = Work.inner, Work.outer
    with Stopwatch({"inner": [(Work, "inner")], "outer": [(Work, "outer")]}, Clock()) as watch:
        work = Work()
        assert (work.outer(), work.inner()) == (2, 1)
        with pytest.raises(TypeError):
            work.inner("wrong")
    assert watch.seconds == {"inner": 2.0, "outer": 1.0}
    assert (Work.inner, Work.outer) == before


def test_functions_are_timed_wherever_they_were_imported():
    places = scaling_parts.inside_places()
    assert set(places) == set(INSIDE)
    modules = {owner.__name__ for owner, _ in places["forward"]}
    assert {"sidgym.agents.update", TorchTrainer.__module__} <= modules
    assert "sidgym.agents.microbatches" in {owner.__name__ for owner, _ in places["step"]}


def test_share_outside_is_what_no_part_took():
    rows = [{**dict.fromkeys(INSIDE, 0.1), "iteration": whole} for whole in (0.625, 1.0, 2.0)]
    figures = share_outside(rows)
    assert figures["share"] == pytest.approx(0.5)
    assert figures["outside_ms"] == pytest.approx(500)
    with pytest.raises(RuntimeError, match="nothing was timed as step"):
        share_outside([{**rows[0], "step": 0.0}])


def test_difference_is_the_largest_of_any_weight():
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)}
    other = {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([0.0, -1.0])}
    assert scaling.difference(one, one) == 0
    assert scaling.difference(one, other) == 1.0
    for name in ("a", "b"):
        with pytest.raises(ValueError, match="not all finite"):
            scaling.difference(one, {**one, name: one[name] + torch.tensor([0.0, float("nan")])})
