"""The contract of every registered environment: Gymnasium's checks, seeding, vector environments, and the docs."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import sidgym.envs
from sidgym.envs.dynamics import Transition
from sidgym.envs.logged import demonstration_store
from sidgym.envs.registration import ENVIRONMENTS, NEXT_ITEM_ID, NEXT_TOKEN_ID, PAGE_ID, register_environments
from sidgym.envs.rewards import Term
from sidgym.envs.views import VectorView

LOGGED = (NEXT_ITEM_ID, NEXT_TOKEN_ID, PAGE_ID)
MODES = tuple(AutoresetMode)
SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
)
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "environments.md"

every_environment = pytest.mark.parametrize("name", ENVIRONMENTS)
every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def stored(rows: Any = slice(None)) -> dict[str, Any]:
    """Arguments that give the logged environments some contexts of the simulated store."""
    store = demonstration_store()
    return {"episodes": store.episodes.take(rows), "table": store.table, "context": store.context}


def assert_same(one: Any, other: Any) -> None:
    """Equal observations or infos: dictionaries, arrays, numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def row_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    return {key: value[row] for key, value in batch.items()}


@every_environment
@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_gymnasium_has_no_complaint(name: str, render_mode: str | None) -> None:
    check_env(gymnasium.make(name, render_mode=render_mode).unwrapped)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NEXT_ITEM_ID, {"group_size": 4, "reward": ["rule", "rank"]}),
        (NEXT_TOKEN_ID, {"features": "codes"}),
        (PAGE_ID, {"page_size": 1}),
    ],
)
def test_gymnasium_has_no_complaint_about_arguments(name: str, arguments: dict[str, Any]) -> None:
    check_env(gymnasium.make(name, **arguments).unwrapped)


def test_registering_again_changes_nothing() -> None:
    before = {name: gymnasium.spec(name) for name in ENVIRONMENTS}
    register_environments()
    assert all(gymnasium.spec(name) is spec for name, spec in before.items())
    assert sidgym.envs.__doc__ is not None


def test_registration_loads_no_torch() -> None:
    program = "import sidgym.envs, sys, gymnasium as g; g.spec('SIDGym/Page-v0'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@every_environment
def test_seeded_twins_live_the_same_life(name: str) -> None:
    lives = []
    for seed in (5, 5, 6):
        env = gymnasium.make(name)
        env.action_space.seed(seed)
        life: list[Any] = [env.reset(seed=seed)]
        for _ in range(20):
            life.append(env.step(env.action_space.sample()))
            if life[-1][2] or life[-1][3]:
                life.append(env.reset())
        lives.append(repr(life))
    assert lives[0] == lives[1]
    assert lives[0] != lives[2]


@every_environment
def test_an_episode_is_begun_before_it_is_played(name: str) -> None:
    env = gymnasium.make(name).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    many = gymnasium.make_vec(name, num_envs=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        many.step(many.action_space.sample())
    with pytest.raises(gymnasium.error.ResetNeeded, match="without reset_mask first"):
        many.reset(options={"reset_mask": np.array([True, False])})
    many.reset(seed=0)
    for mask in (np.array([False, False]), np.array([1, 0]), np.array([True])):
        with pytest.raises(ValueError, match="boolean reset_mask"):
            many.reset(options={"reset_mask": mask})


@every_environment
def test_rendering_is_text_or_nothing(name: str) -> None:
    env = gymnasium.make(name, render_mode="ansi").unwrapped
    assert "reset" in str(env.render())
    env.reset(seed=0)
    begun = env.render()
    env.step(env.action_space.sample())
    assert isinstance(begun, str)
    assert env.render() != begun
    many = gymnasium.make_vec(name, num_envs=2, render_mode="ansi")
    many.reset(seed=0)
    assert [type(text) for text in many.render() or ()] == [str, str]
    assert gymnasium.make(name).unwrapped.render() is None
    with pytest.raises(ValueError, match="render_mode"):
        gymnasium.make_vec(name, render_mode="human")


@every_environment
@every_mode
def test_vector_environments_are_made_by_name(name: str, mode: AutoresetMode) -> None:
    env = gymnasium.make_vec(name, num_envs=3, autoreset_mode=mode)
    assert not isinstance(env, SyncVectorEnv)
    assert env.metadata["autoreset_mode"] is mode
    assert gymnasium.make_vec(name, autoreset_mode=mode.value).metadata["autoreset_mode"] is mode
    assert env.single_action_space == gymnasium.make(name).action_space
    assert env.single_observation_space == gymnasium.make(name).observation_space
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        assert observation in env.observation_space
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (reward.shape, reward.dtype) == ((3,), np.float64)
        assert (terminated.shape, terminated.dtype) == ((3,), np.bool_)
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            with pytest.raises(gymnasium.error.ResetNeeded, match="DISABLED"):
                env.step(env.action_space.sample())
            observation, _ = env.reset(options={"reset_mask": ended})
    assert gymnasium.make_vec(name).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@every_environment
@every_mode
def test_a_vector_of_one_is_the_environment(name: str, mode: AutoresetMode) -> None:
    native = gymnasium.make_vec(name, num_envs=1, autoreset_mode=mode)
    play_against(native, sync(name, 1, mode), steps=40)


@pytest.mark.parametrize("name", LOGGED)
@every_mode
def test_autoreset_is_gymnasiums(name: str, mode: AutoresetMode) -> None:
    # A single context: its episodes are the same wherever they begin.
    native = gymnasium.make_vec(name, num_envs=5, autoreset_mode=mode, **stored([3]))
    play_against(native, sync(name, 5, mode, **stored([3])), steps=12)


class Apart:
    """Dynamics of one slot each, every one with the generator that a scalar environment would have, side by side."""

    def __init__(self, name: str, size: int) -> None:
        self.parts = [gymnasium.make(name).unwrapped.dynamics for _ in range(size)]  # type: ignore[attr-defined]
        self.size, self.generators = size, [seeding.np_random(3 + slot)[0] for slot in range(size)]

    def begin(self, slots: np.ndarray, rng: Any, options: dict[str, Any]) -> dict[str, np.ndarray]:
        return self._joined([self.parts[s].begin(np.array([0]), self.generators[s], options) for s in slots])

    def step(self, slots: np.ndarray, actions: np.ndarray, rng: Any) -> Transition:
        moved = [self.parts[s].step(np.array([0]), a[None], self.generators[s]) for s, a in zip(slots, actions)]
        values = [np.concatenate([getattr(m, n) for m in moved]) for n in ("reward", "terminated", "truncated")]
        return Transition(*values, self._joined([m.info for m in moved]))

    def observe(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        return self._joined([self.parts[s].observe(np.array([0])) for s in slots])

    def render(self, slot: int) -> str:
        return self.parts[slot].render(0)

    def _joined(self, rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


@every_environment
@every_mode
def test_autoreset_of_episodes_that_end_at_different_times_is_gymnasiums(name: str, mode: AutoresetMode) -> None:
    env = gymnasium.make(name).unwrapped
    native = VectorView(Apart(name, 5), env.observation_space, env.action_space, mode)
    # Uniform codes are often illegal, which ends an episode of codes early.
    play_against(native, sync(name, 5, mode), steps=40)


def sync(name: str, size: int, mode: AutoresetMode, **arguments: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gymnasium.make(name, **arguments).unwrapped] * size, autoreset_mode=mode)


def play_against(native: VectorEnv, reference: VectorEnv, steps: int) -> None:
    """Both are told the same; everything they say must be equal."""
    native.action_space.seed(1)
    observation, info = native.reset(seed=3)
    expected, told = reference.reset(seed=3)
    assert_same(observation, expected)
    assert_same_infos(info, told)
    ends = 0
    for _ in range(steps):
        actions = native.action_space.sample()
        *result, info = native.step(actions)
        *wanted, told = reference.step(actions)
        for one, other in zip(result, wanted, strict=True):
            assert_same(one, other)
        assert_same_infos(info, told)
        ended = result[2] | result[3]
        ends += int(ended.sum())
        if native.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
            observation, info = native.reset(options={"reset_mask": ended})
            expected, told = reference.reset(options={"reset_mask": ended})
            assert_same(observation, expected)
            assert_same_infos(info, told)
    assert ends > 0


def assert_same_infos(info: dict[str, Any], told: dict[str, Any]) -> None:
    """Equal, zeros where the masks are False included; ``final_obs`` is arrays here and an array of rows there."""
    assert info.keys() == told.keys()
    for key in (key for key in told if key[0] != "_"):
        mask = told[f"_{key}"]
        np.testing.assert_array_equal(info[f"_{key}"], mask)
        if key == "final_info":
            assert_same_infos(info[key], told[key])
        elif key == "final_obs":
            for value in info[key].values():
                assert not value[~mask].any()
            for row in np.flatnonzero(mask):
                assert_same(row_of({k: v for k, v in info[key].items() if k[0] != "_"}, row), told[key][row])
        else:
            np.testing.assert_array_equal(info[key], told[key])


@pytest.mark.parametrize("name", LOGGED)
def test_rows_of_a_vector_are_scalar_environments(name: str) -> None:
    many = gymnasium.make_vec(name, num_envs=6, autoreset_mode="Disabled", **stored())
    rows = np.random.default_rng(0).integers(0, len(stored()["episodes"]), 6)
    observation, info = many.reset(options={"row": rows})
    many.action_space.seed(2)
    scalars = [gymnasium.make(name, **stored()).unwrapped for _ in rows]
    for place, (env, row) in enumerate(zip(scalars, rows)):
        expected, told = env.reset(options={"row": int(row)})
        assert_same(row_of(observation, place), expected)
        assert_same(row_of(info, place), {**told, **{f"_{key}": True for key in told}})
    actions = many.action_space.sample()
    observation, reward, terminated, truncated, info = many.step(actions)
    for place, env in enumerate(scalars):
        expected, *values, told = env.step(actions[place])
        assert_same(row_of(observation, place), expected)
        assert values == [reward[place], terminated[place], truncated[place]]
        assert_same(row_of(info, place), {**told, **{f"_{key}": True for key in told}})


@every_environment
def test_observations_given_out_do_not_change(name: str) -> None:
    env = gymnasium.make_vec(name, num_envs=2)
    observation, info = env.reset(seed=0)
    before = copy.deepcopy((observation, info))
    for _ in range(3):
        env.step(env.action_space.sample())
    assert_same(observation, before[0])
    assert_same(info, before[1])


@every_environment
def test_gymnasiums_statistics_count_episodes(name: str) -> None:
    # Gymnasium's wrapper takes the step after an end for a reset, which holds under NEXT_STEP.
    env = RecordEpisodeStatistics(gymnasium.make_vec(name, num_envs=3, autoreset_mode="NextStep"))
    env.reset(seed=0)
    returns, episodes = np.zeros(3), 0
    over = np.zeros(3, dtype=bool)
    for _ in range(60):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        returns = np.where(over, 0.0, returns + reward)
        over = terminated | truncated
        if over.any():
            np.testing.assert_allclose(info["episode"]["r"][over], returns[over])
            np.testing.assert_array_equal(info["_episode"], over)
        episodes += int(over.sum())
    assert env.episode_count == episodes > 0


@every_environment
@pytest.mark.parametrize("reward", [3, None, [], (), {"rule": 1.0}, ["rule", 0.5], ("rule", 1.0), [["rule"]]], ids=repr)
def test_what_is_no_reward_is_refused(name: str, reward: Any) -> None:
    expected = "expected at least one term" if reward in ([], ()) else r"Term\('rule', 0.5\)"
    with pytest.raises(ValueError, match=expected):
        gymnasium.make(name, reward=reward)


@every_environment
def test_a_callable_can_be_weighted(name: str) -> None:
    env = gymnasium.make(name, reward=["rule", Term(lambda episodes, rollouts: rollouts.valid * 1.0, 0.25)])
    env.reset(seed=0)
    assert list(env.unwrapped.dynamics.reward.weights.values()) == [1.0, 0.25]  # type: ignore[attr-defined]


@every_environment
@pytest.mark.parametrize("count", [0, -1, 2.5, "a", True])
def test_the_number_of_environments_is_an_integer(name: str, count: Any) -> None:
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1"):
        gymnasium.make_vec(name, num_envs=count)


@every_environment
def test_spaces_survive_copying(name: str) -> None:
    env = gymnasium.make_vec(name, num_envs=2)
    for space in (env.action_space, env.single_action_space, env.observation_space, env.single_observation_space):
        for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
            assert twin == space
            twin.seed(4)
            space.seed(4)
            assert_same(twin.sample(), space.sample())


@every_environment
def test_the_class_is_the_page(name: str) -> None:
    entry, vector_entry = ENVIRONMENTS[name]
    env, many = gymnasium.make(name).unwrapped, gymnasium.make_vec(name)
    assert entry.endswith(f":{type(env).__name__}")
    assert vector_entry.endswith(f":{type(many).__name__}")
    headings = re.findall(r"^    ## (.+)$", type(env).__doc__ or "", flags=re.M)
    assert headings == list(SECTIONS)
    assert "v0" in (type(env).__doc__ or "").split("Version History")[1]


@pytest.mark.skipif(not PAGE.exists(), reason="the wheel carries no docs")
def test_the_documentation_names_every_environment_and_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## `(SIDGym/[^`]+)`", text, flags=re.M) == list(ENVIRONMENTS)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    shown = re.findall(r"```text\n(.*?)```", text, flags=re.S)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert shown, "the page shows what rendering prints"
    assert all(text.strip() in result.stdout for text in shown), result.stdout


@pytest.mark.skipif(not PAGE.exists(), reason="the wheel carries no docs")
def test_the_picture_is_one() -> None:
    names = re.findall(r"!\[[^\]]+\]\(([\w.]+\.svg)\)", PAGE.read_text(encoding="utf-8"))
    assert names == ["trie_walk.svg"]
    picture = ElementTree.parse(PAGE.parent / names[0]).getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.get("viewBox")
