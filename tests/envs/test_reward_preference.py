"""The gated preference reward and the simulator's truth, against numbers computed by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reward_cases import TABLE, FixedPreference, context, make_episodes, make_rollouts, values

from sidgym.envs.records import PAD_ITEM, Episodes
from sidgym.envs.rewards import (
    GatedPreference,
    RewardContext,
    RewardError,
    RewardSum,
    Term,
    build_reward,
    find_reward,
    required_fields,
)

# Item 0 points along x, item 1 along y, item 2 is between, item 3 has no text, item 4 is opposite to item 0.
VECTORS = np.array([[1, 0], [0, 2], [3, 3], [0, 0], [-1, 0], [0.5, 0]], dtype=np.float32)


def gated(**args: Any) -> Any:
    given = RewardContext(table=TABLE, embeddings=VECTORS, preference=FixedPreference())
    return build_reward(Term("gated_preference", args=args), given)


def test_gate_closes_on_candidates_unlike_the_history() -> None:
    episodes = make_episodes([[11]], [[PAD_ITEM, 0]])
    reward = gated(tau=0.2)
    told = reward.explain(episodes, make_rollouts([[1, 2, 3, 4, 5]]))
    np.testing.assert_allclose(told["relevance"], [[0, np.sqrt(0.5), 0, -1, 1]], atol=1e-6)
    np.testing.assert_array_equal(told["passed"], [[0, 1, 0, 0, 1]])
    np.testing.assert_allclose(told["reward"], [[0, 0.1, 0, 0, 0.25]], atol=1e-6)
    open_gate = gated(gate=False)(episodes, make_rollouts([[1, 2, 3, 4, 5]]))
    np.testing.assert_allclose(open_gate, [[0.05, 0.1, 0.15, 0.2, 0.25]], atol=1e-6)


def test_relevance_takes_the_most_similar_item_of_the_history_and_padding_never_counts() -> None:
    episodes = make_episodes([[0], [0]], [[PAD_ITEM, 0, 1], [PAD_ITEM, PAD_ITEM, PAD_ITEM]])
    told = gated().explain(episodes, make_rollouts([[1, 5], [1, 5]]))
    np.testing.assert_allclose(told["relevance"], [[1, 1], [0, 0]], atol=1e-6)
    assert not told["reward"][1].any()


def test_anchor_lifts_positives_to_the_best_of_the_group() -> None:
    episodes, rollouts = make_episodes([[1, 4]]), make_rollouts([[1, 2, 5, 4, -1]])
    np.testing.assert_allclose(gated()(episodes, rollouts), [[0.25, 0.1, 0.25, 0.25, 0]], atol=1e-6)
    np.testing.assert_allclose(gated(anchor=False)(episodes, rollouts), [[0, 0.1, 0.25, 0, 0]], atol=1e-6)


def test_a_text_embedding_of_nan_is_no_text() -> None:
    vectors = np.array([[1, 0], [np.nan, 1]], dtype=np.float32)
    reward: Any = build_reward(Term("gated"), RewardContext(embeddings=vectors, preference=FixedPreference()))
    told = reward.explain(make_episodes([[5]], [[0, 1]]), make_rollouts([[0, 1]]))
    np.testing.assert_array_equal(told["relevance"], [[1, 0]])
    np.testing.assert_array_equal(told["passed"], [[1, 0]])


class NanAtTwo:
    """A broken model, of preference or of relevance: NaN at item 2 and at padding."""

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.where((items == 2) | (items == PAD_ITEM), np.nan, 0.5)


@pytest.mark.parametrize("what", ["relevance", "preference"])
@pytest.mark.parametrize("gate", [{"tau": -2.0}, {"tau": 2.0}, {"gate": False}])
def test_nan_is_refused_whether_the_gate_is_open_or_closed(what: str, gate: dict[str, Any]) -> None:
    broken = NanAtTwo() if what == "preference" else NanAtTwo().score
    given = RewardContext(TABLE, VECTORS, preference=FixedPreference())
    total = RewardSum([Term("gated", args={**gate, what: broken})], given, 2)
    history = [[PAD_ITEM, 0], [PAD_ITEM, 0]]
    items = [[[0, -1], [1, -1]], [[1, -1], [5, 2]]]
    with pytest.raises(RewardError, match=rf"the {what} of item 2 \(candidate 1\) is nan") as caught:
        total(make_episodes([[0], [0]], history), make_rollouts(items))
    assert (caught.value.reward, caught.value.example["row"]) == ("gated", 1)
    # Neither padding nor a candidate that is not valid has a say.
    rollouts = make_rollouts([[[0, -1], [1, -1]], [[1, -1], [-1, -1]]])
    assert np.isfinite(total(make_episodes([[0], [0]], history), rollouts)[0]).all()
    asked = replace(make_rollouts(items), valid=np.array([[True, True], [True, False]]))
    assert np.isfinite(total(make_episodes([[0], [0]], history), asked)[0]).all()


@pytest.mark.parametrize("tau", [float("nan"), float("inf"), "0.2", None])
def test_the_threshold_is_a_finite_number(tau: Any) -> None:
    with pytest.raises(ValueError, match="'gated': tau must be a finite number"):
        find_reward(Term("gated", args={"tau": tau}))
    with pytest.raises(ValueError, match="'gated': tau must be a finite number"):
        GatedPreference(context(), tau=tau)


def test_normalised_embeddings_are_made_once() -> None:
    given = context()
    terms = [Term("semantic"), Term("gated"), Term("gated", args={"tau": 0.5})]
    arrays = [getattr(reward, "relevance", reward).unit_vectors for reward in (build_reward(t, given) for t in terms)]
    assert arrays[0] is arrays[1] is arrays[2]
    np.testing.assert_allclose(np.linalg.norm(arrays[0], axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        arrays[0][:] = 0
    assert build_reward(Term("semantic"), context()).unit_vectors is not arrays[0]


def test_relevance_by_prefix_needs_no_texts() -> None:
    # The history holds 000 and 102; the candidates are 002, 102, 110 and 010.
    episodes = make_episodes([[5], [5]], [[PAD_ITEM, 0, 8], [PAD_ITEM, PAD_ITEM, PAD_ITEM]])
    given = RewardContext(table=TABLE, preference=FixedPreference())
    reward: Any = build_reward(Term("gated", args={"relevance": "prefix", "tau": 0.5}), given)
    told = reward.explain(episodes, make_rollouts([[2, 8, 9, 3], [2, 8, 9, 3]]))
    np.testing.assert_allclose(told["relevance"], [[2 / 3, 1, 1 / 3, 1 / 3], [0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(told["reward"], [[0.1, 0.4, 0, 0], [0, 0, 0, 0]], atol=1e-6)


class Even:
    """Prefers even items; made from the context or used as the class's instance."""

    def __init__(self, given: RewardContext | None = None) -> None:
        self.given = given

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return ((items % 2 == 0) & (items != PAD_ITEM)).astype(np.float32)


EVEN = Even()


def make_even(given: RewardContext) -> Even:
    return Even(given)


def last_item(history: np.ndarray, items: np.ndarray) -> np.ndarray:
    return (items > history[:, -1:]).astype(np.float32)


class AfterLast:
    """The same as ``last_item``, made from the context."""

    def __init__(self, given: RewardContext) -> None:
        assert given.table is not None

    def __call__(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        return last_item(history, items)


@pytest.mark.parametrize("preference", ["Even", "EVEN", "make_even"])
@pytest.mark.parametrize("relevance", ["last_item", "AfterLast"])
def test_preference_and_relevance_from_outside_the_tree(preference: str, relevance: str) -> None:
    args = {"preference": f"{__name__}:{preference}", "relevance": f"{__name__}:{relevance}", "anchor": False}
    reward = build_reward(Term("gated", args=args), RewardContext(table=TABLE))
    result = reward(make_episodes([[0]], [[9, 3]]), make_rollouts([[2, 3, 4, 5, 6]]))
    np.testing.assert_array_equal(result, [[0, 0, 1, 0, 1]])


NOT_A_MODEL = 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"preference": "mode"}, "Did you mean 'model'"),
        ({"relevance": "txt"}, "Did you mean 'text'"),
        ({"preference": "no_such_module:x"}, "cannot import module"),
        ({"preference": f"{__name__}:NOT_A_MODEL"}, r"must have score\(history, items\)"),
        ({"relevance": f"{__name__}:NOT_A_MODEL"}, r"must be callable as \(history, items\)"),
    ],
)
def test_gated_says_what_is_wrong_with_its_arguments(args: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward(Term("gated", args=args), context())


def test_names_are_checked_before_there_is_a_context() -> None:
    with pytest.raises(ValueError, match="unknown relevance"):
        find_reward(Term("gated", args={"relevance": "colour"}))


def test_required_fields_follow_the_arguments() -> None:
    assert required_fields(Term("gated_preference")) == ("preference", "embeddings")
    outside = {"preference": f"{__name__}:EVEN", "relevance": "prefix"}
    assert required_fields(Term("gated", args=outside)) == ("catalogue", "table")
    assert required_fields(Term("popularity_penalty")) == ("popularity",)
    assert required_fields(Term("rule")) == ()


def test_true_preference_reads_the_truth_of_the_episodes_events() -> None:
    rollouts = make_rollouts([[[2, 4], [6, -1], [-1, -1]]])
    np.testing.assert_allclose(values("true_preference", make_episodes([[1]]), rollouts), [[0.15, 0.3, 0]])
    rows = np.zeros(1, dtype=np.int64)
    blind = Episodes(rows, rows, rows[:, None], rows[:, None])
    with pytest.raises(ValueError, match=r"Episodes\.event"):
        values("true_preference", blind, rollouts)


def test_true_preference_reads_the_shoppers_taste_in_sessions() -> None:
    rows = np.zeros(1, dtype=np.int64)
    taste = np.array([[6, 0, 0]], dtype=np.int16)
    session = Episodes(rows, rows, rows[:, None], np.full((1, 1), PAD_ITEM), taste=taste)
    rollouts = make_rollouts([[[2, 6], [6, -1], [-1, -1]]])
    np.testing.assert_allclose(values("true_preference", session, rollouts), [[0.25, 0.5, 0]])
