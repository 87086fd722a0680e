"""What docs/rewards.md shows is run as it is written."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_cases import context, make_episodes, make_rollouts

from sidgym.envs.rewards import REWARDS, RewardSum, Term, find_reward
from sidgym.launch.config import load_config
from sidgym.launch.pipeline import check_names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the wheel carries no docs")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that begin with a file's name, as files beside the user."""
    for block in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_the_table_names_every_reward() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## In the box")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(REWARDS)


def test_a_reward_of_ones_own_is_short_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    own, alone = blocks("python")[:2]
    assert len(own.strip().splitlines()) <= 20
    scope: dict[str, Any] = {}
    exec(compile(alone, str(PAGE), "exec"), scope)
    rare, new = (1 + np.array([[3, 24, 8]])) ** -0.5, np.array([[0.1, 0, 0.1]])
    expected = np.array([[1, -1 / np.log(3), -1 / np.log(4)]])
    expected[:, 1:] /= (1 / np.log([3, 4])).sum()
    np.testing.assert_allclose(scope["scores"].total, expected + 0.2 * (rare + new), rtol=1e-6)
    assert "'shop_rewards:LongTail/new', 'shop_rewards:LongTail/rare'" in capsys.readouterr().out


def test_the_command_names_what_can_be_run() -> None:
    told = []
    for command in blocks("sh"):
        program, action, name, *options = shlex.split(command)
        assert (program, action) == ("sidgym", "run")
        config = load_config(Path(name), options, prog="sidgym run")
        check_names(config)
        told.append([(term.name, term.weight, dict(term.args)) for term in config.rl.rewards])
    assert told == [
        [("gated", 1.0, {"tau": 0.1}), ("rule", 1.0, {})],
        [("gated_preference", 1.0, {"tau": 0.1}), ("shop_rewards:LongTail", 0.2, {})],
    ]


def test_the_settings_build_rewards() -> None:
    built = 0
    for block in blocks("toml"):
        terms = [Term(**term) for term in tomllib.loads(block)["rl"]["rewards"]]
        assert all(find_reward(term) for term in terms)
        scores = RewardSum(terms, context(), 2).score(make_episodes([[3]], [[0, 1]]), make_rollouts([[3, 1]]))
        assert np.isfinite(scores.total).all()
        built += len(terms)
        if terms[0].name == "trl":
            np.testing.assert_array_equal(scores.total, [[2, 0]])
            np.testing.assert_array_equal(scores.diagnostics["verl/new"], [[1, 0]])
    assert built == 4
