"""vLLM as an engine against the built-in one: candidates, pushes of weights, training.

What needs no vLLM runs everywhere, over a runner that stands in for it. The rest shares one vLLM engine in a Ray actor,
started once: a model with a wide vocabulary, into which every test pushes its own weights.
"""

import copy
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from toy import toy_episodes, toy_policy, toy_table

from sidgym.agents import engine_vllm
from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import PolicyConfig, RewardConfig, RlConfig
from sidgym.agents.engine import Engine, TorchEngine, make_engine
from sidgym.agents.engine_vllm import VllmEngine, WeightsMismatch
from sidgym.agents.policy import Policy
from sidgym.agents.rl import RlTask, TorchTrainer, save_episodes
from sidgym.envs.records import PAD_ITEM, Episodes, Rollouts
from sidgym.sid.table import SidTable

TOLERANCE = 5e-4
SIZES = (200, 6, 6)
"""Codes of the shared vocabulary; every catalogue of at most so many fits it."""
SHAPE = PolicyConfig(hidden_size=32, intermediate_size=64, layers=2, heads=1, kv_heads=1)
"""A head of 32 numbers is the smallest that vLLM computes on a CPU."""

MISSING = importlib.util.find_spec("vllm") is None or importlib.util.find_spec("ray") is None
WHY = "vLLM is not installed; on x86-64 Linux make setup-dev installs it"
needs_vllm = [pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(MISSING, reason=WHY)]

IN_PROCESS = """
from test_engine_vllm import *

for architecture in ("llama", "gpt2"):
    shape = replace(SHAPE, architecture=architecture)
    policy, other = (toy_policy(toy_table(50, SIZES), seed, scale=4.0, config=shape) for seed in (0, 1))
    engine = VllmEngine(policy, 4, in_process=True)
    assert_same(engine.rollout(contexts(6, 50), 8), TorchEngine(twin(policy), 4).rollout(contexts(6, 50), 8))
    engine.load_weights(other.model.state_dict(), 1)
    assert_same(engine.rollout(contexts(6, 50), 8), TorchEngine(other, 4).rollout(contexts(6, 50), 8))
    engine.close()
print("same")
"""

_shared: list = []


class TorchRunner:
    """Stands in for a vLLM engine: a copy of the model, its log-probabilities, and what can go wrong with a push."""

    def __init__(self, policy: Policy, fault: str = ""):
        self.policy, self.stamp, self.fault, self.asked = twin(policy), "", fault, 0

    @torch.no_grad()
    def score(self, stamp, prompts, sets, which):
        if stamp != self.stamp:
            raise WeightsMismatch("other weights")
        self.asked += len(prompts)
        rows = [self.policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]
        return np.concatenate([row[sets[number]].numpy() for row, number in zip(rows, which)])

    def push(self, stamp, state):
        self.stamp = stamp
        if self.fault == "nan":
            state = {name: torch.full_like(value, float("nan")) for name, value in state.items()}
        if self.fault != "ignores":
            self.policy.model.load_state_dict(state)


def shared_engine(policy: Policy, chunk: int, normalise: str) -> Engine:
    """The shared vLLM engine under the registry's signature."""
    return VllmEngine(policy, chunk, normalise, runners=_shared)


def toy(seed: int = 0, table: SidTable | None = None, scale: float = 10.0) -> Policy:
    """A policy of the shared shape and vocabulary over ``table``, whose codes are among the vocabulary's."""
    whole = toy_policy(toy_table(50, SIZES), seed, scale=scale, config=SHAPE)
    return whole if table is None else Policy(whole.model, whole.tokenizer, table).eval()


def twin(policy: Policy) -> Policy:
    """Another model with the same weights."""
    return Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.table).eval()


def contexts(batch: int, items: int, seed: int = 0) -> Episodes:
    """Histories of unequal length, one of them empty, the first one twice."""
    episodes = toy_episodes(batch, items, seed=seed)
    episodes.history[-1] = episodes.history[0]
    if batch > 2:
        episodes.history[1] = PAD_ITEM
    return episodes


def assert_same(found: Rollouts, expected: Rollouts) -> None:
    """The same candidates, in the same order wherever scores are apart by more than the tolerance."""
    np.testing.assert_array_equal(found.valid, expected.valid)
    for row, valid in enumerate(expected.valid):
        score = expected.score[row][valid].astype(np.float64)
        # Behind the last place of a full group stands one that nobody sees: it may be as near as can be.
        beyond = score[-1] if valid.all() else -np.inf
        gap = np.abs(np.diff(score, prepend=np.inf, append=beyond))
        clear = (gap[:-1] > 2 * TOLERANCE) & (gap[1:] > 2 * TOLERANCE)
        places = np.flatnonzero(valid)[clear]
        np.testing.assert_array_equal(found.codes[row][places], expected.codes[row][places])
        np.testing.assert_array_equal(found.item[row][places], expected.item[row][places])
        np.testing.assert_allclose(found.logp[row][places], expected.logp[row][places], atol=TOLERANCE)
        np.testing.assert_allclose(found.score[row][valid], score, atol=2 * TOLERANCE)


def flat(trainer: TorchTrainer) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([value.flatten() for value in trainer.weights().values()])


def compare(runners: list, seed: int, normalise: str, unique: bool) -> None:
    """One random catalogue, policy, batch and width."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(rng.integers(1, most + 1)) for most in (5, 6, 6)[: rng.integers(1, 4)])
    items = int(rng.integers(1, np.prod(sizes) + 1)) if unique else int(rng.integers(1, 40))
    policy = toy(seed, toy_table(items, sizes, seed, unique))
    episodes, width = contexts(int(rng.integers(2, 7)), items, seed), int(rng.integers(1, items + 4))
    engine = VllmEngine(policy, 3, normalise, runners=runners)
    torch_engine = TorchEngine(twin(policy), 3, normalise)
    assert_same(engine.rollout(episodes, width), torch_engine.rollout(episodes, width))
    trie = policy.trie.restrict(rng.permutation(items)[: max(1, items // 2)])
    assert_same(engine.rollout(episodes, width, trie=trie), torch_engine.rollout(episodes, width, trie=trie))


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(["trie", "vocab"]), st.booleans())
def test_search_over_what_is_asked_for_is_the_built_in_search(seed, normalise, unique):
    compare([TorchRunner(toy(1)), TorchRunner(toy(2))], seed, normalise, unique)


@pytest.mark.parametrize(
    ("mode", "lanes"), [("sample", 1), ("top_k", 1), ("dynamic", 1), ("stochastic_beam", 1), ("stochastic_beam", 2)]
)
def test_draws_are_those_of_the_built_in_engine(mode, lanes):
    policy = toy(3, toy_table(30, (4, 5, 6)), scale=4.0)
    arguments = {"mode": mode, "seed": 5, "lanes": lanes, "top_k": 2}
    found = VllmEngine(policy, 4, runners=[TorchRunner(policy)]).rollout(contexts(7, 30), 6, **arguments)
    expected = TorchEngine(policy, 4).rollout(contexts(7, 30), 6, **arguments)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.logp, expected.logp, atol=TOLERANCE)
    assert (found.importance is None) == (expected.importance is None)
    np.testing.assert_allclose(found.weight, expected.weight, atol=TOLERANCE)


def test_no_question_is_asked_twice_and_none_whose_answer_is_known():
    policy = toy(0, toy_table(3, (3, 1, 1)))
    runner = TorchRunner(policy)
    engine = VllmEngine(policy, 8, runners=[runner])
    episodes = contexts(2, 3)
    asked = runner.asked
    engine.rollout(episodes, 3)
    assert runner.asked - asked == 1, "two equal histories have one root; below it every code is an only child"
    VllmEngine(policy, 8, "vocab", runners=[runner]).rollout(episodes, 3)
    assert runner.asked - asked == 1 + 1 + 7, "besides the check, one root and three branches on two levels"


@pytest.mark.parametrize("fault", ["ignores", "nan"])
def test_a_push_that_does_not_arrive_is_refused(fault):
    policy = toy(0)
    runner = TorchRunner(policy)
    engine = VllmEngine(policy, runners=[runner])
    runner.fault = fault
    with pytest.raises(WeightsMismatch, match=r"differ from the policy's"):
        engine.load_weights(toy(1).model.state_dict(), 1)
    with pytest.raises(WeightsMismatch):
        engine.rollout(contexts(2, 50), 3)
    runner.fault = ""
    engine.load_weights(toy(2).model.state_dict(), 2)
    assert_same(engine.rollout(contexts(2, 50), 3), TorchEngine(toy(2)).rollout(contexts(2, 50), 3))


def test_an_engine_whose_runner_was_given_other_weights_says_so():
    policy = toy(0)
    runner = TorchRunner(policy)
    first = VllmEngine(policy, runners=[runner])
    VllmEngine(toy(1), runners=[runner])
    with pytest.raises(WeightsMismatch):
        first.rollout(contexts(2, 50), 3)


def test_what_cannot_be_done_is_refused_by_name(monkeypatch):
    policy = toy(0)
    engine = VllmEngine(policy, runners=[TorchRunner(policy)])
    with pytest.raises(ValueError, match="mode 'free'"):
        engine.rollout(contexts(2, 50), 3, mode="free")
    with pytest.raises(ValueError, match="beam, sample, top_k, dynamic, stochastic_beam"):
        engine.rollout(contexts(2, 50), 3, mode="bean")
    with pytest.raises(ValueError, match="vLLM was started for 7"):
        VllmEngine(policy, max_length=8, runners=[TorchRunner(policy)]).rollout(contexts(4, 50), 3)
    with pytest.raises(ValueError, match="unknown normalise"):
        VllmEngine(policy, normalise="tree", runners=[TorchRunner(policy)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="this model's have 8"):
        engine_vllm.check_vllm(8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sidgym\[vllm\]"):
        make_engine("vllm", policy, 4, "trie")


@pytest.fixture(scope="module")
def runners() -> Iterator[list]:
    """The shared engine, started by its name as a run does."""
    import ray

    engine = make_engine("vllm", toy(0), 4, "trie")
    assert isinstance(engine, VllmEngine)
    assert engine.runners is None, "nothing starts before it is needed"
    assert engine.check() < TOLERANCE
    assert engine.runners is not None
    _shared[:] = engine.runners
    yield _shared
    engine.close()
    _shared.clear()
    ray.shutdown()


class TestVllm:
    """Against the real one."""

    pytestmark = needs_vllm

    @settings(max_examples=10)
    @given(seed=st.integers(0, 10_000), normalise=st.sampled_from(["trie", "vocab"]), unique=st.booleans())
    def test_same_candidates_as_the_built_in_engine(self, runners, seed, normalise, unique):
        compare(runners, seed, normalise, unique)

    @pytest.mark.parametrize("normalise", ["trie", "vocab"])
    def test_wide_nodes_are_asked_for_in_parts(self, runners, normalise):
        policy = toy(4, toy_table(500, (200, 3), seed=4))
        assert policy.trie.children_mask(torch.zeros(1, dtype=torch.long), 0).sum() > 128
        found = VllmEngine(policy, 3, normalise, runners=runners).rollout(contexts(5, 500), 40)
        assert_same(found, TorchEngine(twin(policy), 3, normalise).rollout(contexts(5, 500), 40))

    @pytest.mark.parametrize("mode", ["sample", "top_k", "dynamic", "stochastic_beam"])
    def test_same_draws(self, runners, mode):
        policy = toy(3, toy_table(30, (4, 5, 6)), scale=4.0)
        found = VllmEngine(policy, 4, runners=runners).rollout(contexts(7, 30), 6, mode, seed=5, top_k=2)
        expected = TorchEngine(policy, 4).rollout(contexts(7, 30), 6, mode, seed=5, top_k=2)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_allclose(found.logp, expected.logp, atol=TOLERANCE)

    def test_chunks_over_several_runners_come_back_in_order(self, runners):
        policy = toy(5)
        episodes = contexts(11, 50)
        one = VllmEngine(policy, 2, runners=runners).rollout(episodes, 6)
        two = VllmEngine(policy, 2, runners=[*runners, *runners]).rollout(episodes, 6)
        assert_same(two, one)

    def test_pushed_weights_replace_the_old_ones(self, runners):
        policy, other = toy(6), toy(7)
        episodes = contexts(4, 50)
        engine = VllmEngine(policy, 4, runners=runners)
        old = engine.rollout(episodes, 8)
        # Tied weights under one of their names, as a trainer sends them.
        state = {name: value for name, value in other.model.state_dict().items() if name != "lm_head.weight"}
        engine.load_weights(state, 3)
        new = engine.rollout(episodes, 8)
        assert_same(new, TorchEngine(other, 4).rollout(episodes, 8))
        assert (new.codes != old.codes).any()
        assert (old.weight_version, new.weight_version) == (0, 3)

    def test_an_engine_that_is_killed_is_replaced(self, runners):
        policy = toy(8)
        engine = VllmEngine(policy, 4, runners=runners)
        before = engine.rollout(contexts(7, 50), 8)
        runner = runners[0]
        os.kill(runner.ray.get(runner.actor.__ray_call__.remote(lambda own: os.getpid())), signal.SIGKILL)
        assert_same(engine.rollout(contexts(7, 50), 8), before)
        engine.load_weights(toy(9).model.state_dict(), 1)
        assert_same(engine.rollout(contexts(7, 50), 8), TorchEngine(toy(9), 4).rollout(contexts(7, 50), 8))

    def test_a_push_without_the_tied_head_is_noticed(self, runners):
        engine = VllmEngine(toy(6), 4, runners=runners)
        state = {name: value.clone() for name, value in toy(7).model.state_dict().items()}
        engine.policy.model.load_state_dict(state)
        del state["lm_head.weight"]
        with tempfile.TemporaryDirectory() as folder:
            save_file(state, Path(folder) / "model.safetensors")
            runners[0].ray.get(runners[0].actor.push_files.remote(engine._stamp, folder))
        with pytest.raises(WeightsMismatch, match=r"differ from the policy's"):
            engine.check()

    def test_a_push_that_leaves_the_prefix_cache_is_noticed(self, runners):
        engine = VllmEngine(toy(6), 4, runners=runners)
        state = {name: value.clone() for name, value in toy(7).model.state_dict().items()}
        engine.policy.model.load_state_dict(state)
        with tempfile.TemporaryDirectory() as folder:
            save_file(state, Path(folder) / "model.safetensors")
            push = runners[0].actor.__ray_call__.remote(
                lambda own, path: own.llm.collective_rpc("reload_weights", kwargs={"weights_path": path}) and None,
                folder,
            )
            runners[0].ray.get(push)
        with pytest.raises(WeightsMismatch, match="prefix cache"):
            engine.check()
        engine.load_weights(state, 1)
        assert engine.check() < TOLERANCE

    def test_in_this_process(self):
        """In a process of the test's own: vLLM changes the torch of the one that it runs in."""
        command = [sys.executable, "-c", IN_PROCESS]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.endswith("same\n")

    def test_training_goes_as_with_the_built_in_engine(self, runners, tmp_path):
        save_policy(tmp_path / "sft", toy(8, scale=4.0), {"history": 5})
        save_episodes(tmp_path / "contexts.npz", toy_episodes(20, 50, targets=2))
        config = RlConfig(
            backend="torch",
            rewards=(RewardConfig("rule"), RewardConfig("rank")),
            group_size=12,
            contexts_per_step=12,
            chunk=4,
            epochs=2,
            minibatch=6,
            lr=1e-3,
            warmup_steps=1,
            kl_weight=0.01,
            nll_weight=0.1,
        )
        figures, weights = [], []
        for engine in ("torch", "test_engine_vllm:shared_engine"):
            task = RlTask(str(tmp_path / "sft"), str(tmp_path / "contexts.npz"), 0, replace(config, engine=engine))
            trainer = TorchTrainer(task)
            start = flat(trainer)
            figures.append([trainer.step(number) for number in range(4)])
            weights.append(flat(trainer))
        for ours, theirs in zip(*figures):
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert abs(ours[name] - theirs[name]) < 2e-3 * max(1, abs(ours[name])), name
        assert (weights[0] - weights[1]).abs().max() < 1e-3
        assert (weights[0] - start).abs().max() > 3e-3, "so much that the engine must have followed"
