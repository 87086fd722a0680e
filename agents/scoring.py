"""Asking a preference model inside the RL loop: remembered scores, blocks of one shape, Ray actors, time spent.

A policy comes back to the same contexts and proposes many of the same items, so scores are remembered by history and
item. What is not known is asked in blocks of one fixed shape, whatever is asked for at once: the shape of a batch can
change the last bit of a matrix product, and a result must not depend on what happens to be remembered, on the worker
or on the replica. Left out: the models (``envs.preference``), and starting Ray (``ray_start``).

Symbols: B contexts, T history length, K items asked, R blocks.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sidgym.agents.config import RlConfig, ScoringConfig
from sidgym.envs.preference import load_preference
from sidgym.envs.records import PAD_ITEM
from sidgym.envs.reward_context import PreferenceModel
from sidgym.envs.rewards import RewardSum

WIDTH, ROWS = 16, 16
"""Items and histories of a block."""
LOST = 3
"""Times in a row that an actor may be lost before that is an error."""

Block = tuple[np.ndarray, np.ndarray]
"""Histories (ROWS, T) and items (ROWS, WIDTH)."""


@dataclass
class Account:
    """What asking has cost: ``seconds`` of waiting, scores ``asked`` for, and of these ``remembered``."""

    seconds: float = 0.0
    asked: float = 0.0
    remembered: float = 0.0

    def add(self, other: "Account") -> None:
        """Counts another account's in."""
        for name in (f.name for f in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def taken(self) -> "Account":
        """What it holds; from here on it counts from zero."""
        before = Account(self.seconds, self.asked, self.remembered)
        self.seconds = self.asked = self.remembered = 0.0
        return before


class Asked(Protocol):
    """Whoever answers blocks, wherever it is."""

    def answers(self, blocks: Sequence[Block]) -> list[np.ndarray]:
        """Scores (ROWS, WIDTH) of each block."""


class Here:
    """A model in this process."""

    def __init__(self, model: PreferenceModel):
        self.model = model

    def answers(self, blocks: Sequence[Block]) -> list[np.ndarray]:
        return [np.asarray(self.model.score(history, items), dtype=np.float32) for history, items in blocks]


class Scorer:
    """A ``PreferenceModel`` over another one, or over actors, that remembers and keeps an account.

    At most ``cache`` scores are remembered, the newer one where two want the same slot. With 0 everything is asked
    anew, of a model in this process in the very shape that it is asked for.
    """

    def __init__(self, asked: Asked, cache: int):
        self.source, self.account = asked, Account()
        self.slots = 1 << max(0, cache.bit_length() - 1) if cache else 0  # a power of two, no more than asked for
        self.keys = np.zeros(self.slots, dtype=np.uint64)
        self.scores = np.zeros(self.slots, dtype=np.float32)

    def score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, K) float32, 0 at PAD_ITEM."""
        begin = time.perf_counter()
        if not self.slots and isinstance(self.source, Here):
            out = np.asarray(self.source.model.score(history, items), dtype=np.float32)
            self.account.asked += float((items != PAD_ITEM).sum())
        else:
            out = self._score(np.asarray(history, dtype=np.int64), np.asarray(items, dtype=np.int64))
        self.account.seconds += time.perf_counter() - begin
        return out

    def _score(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        out = np.zeros(items.shape, dtype=np.float32)
        row, column = np.nonzero(items != PAD_ITEM)
        wanted = items[row, column]
        numbers = row_numbers(history)
        keys, first, back = np.unique(pair_keys(numbers[row], wanted), return_index=True, return_inverse=True)
        found = np.zeros(len(keys), dtype=np.float32)
        missing = np.ones(len(keys), dtype=bool)
        if self.slots:
            place = (keys & np.uint64(self.slots - 1)).astype(np.int64)
            missing = self.keys[place] != keys
            found[~missing] = self.scores[place[~missing]]
        rows = row[first[missing]]
        found[missing] = asked_in_blocks(self.source, history, numbers[rows], rows, wanted[first[missing]])
        if self.slots:
            # Of two that want one slot the later stays; what is remembered decides how fast, not what comes out.
            self.keys[place[missing]], self.scores[place[missing]] = keys[missing], found[missing]
            self._mend(place[missing], keys[missing], found[missing])
        self.account.asked += len(wanted)
        self.account.remembered += len(wanted) - int(missing.sum())
        out[row, column] = found[back.reshape(-1)]
        return out

    def _mend(self, place: np.ndarray, keys: np.ndarray, found: np.ndarray) -> None:
        """Makes sure that a slot's score is its key's: numpy does not say which of two writes is the later one."""
        stays = self.keys[place] == keys
        self.scores[place[stays]] = found[stays]

    def start(self) -> None:
        """Makes the actors, if it asks any, so that they belong to this process."""
        start = getattr(self.source, "start", None)
        if start is not None:
            start()


def row_numbers(history: np.ndarray) -> np.ndarray:
    """A number of each history (B, T), equal for equal rows: a 64-bit hash, (B,) uint64."""
    # Rows of other lengths count as others: a model may work in other shapes for them.
    length = history.shape[1]
    places = _mixed(np.arange(length, dtype=np.uint64))
    mixed = _mixed((history + 2).astype(np.uint64) ^ places)
    return _mixed(mixed.sum(axis=1, dtype=np.uint64) ^ np.uint64(length))


def pair_keys(numbers: np.ndarray, items: np.ndarray) -> np.ndarray:
    """A number, never 0, of each pair of history and item, (n,) uint64. Two pairs share one with probability 2^-64."""
    return np.maximum(_mixed(numbers ^ _mixed((items + 2).astype(np.uint64))), np.uint64(1))


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), after its step."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def asked_in_blocks(
    source: Asked, history: np.ndarray, numbers: np.ndarray, rows: np.ndarray, items: np.ndarray
) -> np.ndarray:
    """Scores (n,) of ``items`` (n,) after ``history[rows]``, asked for in blocks of (ROWS, WIDTH).

    ``numbers`` (n,) are equal where histories are: equal histories share a row of a block.
    """
    if not len(items):
        return np.zeros(0, dtype=np.float32)
    # By first appearance, so that the order in which items are asked does not hang on their hashes.
    _, first, group = np.unique(numbers, return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[group.reshape(-1)]
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    begin = np.cumsum(counts) - counts
    place = np.empty(len(items), dtype=np.int64)
    place[order] = np.arange(len(items)) - np.repeat(begin, counts)
    lines = -(-counts // WIDTH)  # rows that a history needs
    line = (np.cumsum(lines) - lines)[group] + place // WIDTH
    total = -(-int(lines.sum()) // ROWS) * ROWS
    asked = np.full((total, WIDTH), PAD_ITEM, dtype=np.int64)
    past = np.full((total, history.shape[1]), PAD_ITEM, dtype=np.int64)
    asked[line, place % WIDTH] = items
    past[line] = history[rows]
    blocks = [(past[start : start + ROWS], asked[start : start + ROWS]) for start in range(0, total, ROWS)]
    answers = source.answers(blocks)
    for answer in answers:
        if answer.shape != (ROWS, WIDTH):
            raise ValueError(f"preference model: expected scores {(ROWS, WIDTH)}, got {answer.shape}")
    return np.concatenate(answers)[line, place % WIDTH]


# Ray -----------------------------------------------------------------------------------------------------------------


class ScoringActor:
    """What a Ray actor holds: one saved model, on the GPU that it was given a share of."""

    def __init__(self, directory: str, gpus: float):
        model: Any = load_preference(directory)
        if gpus > 0:
            model = on_gpu(model)
        self.here = Here(model)

    def answers(self, blocks: Sequence[Block]) -> list[np.ndarray]:
        return self.here.answers(blocks)


def on_gpu(model: Any) -> Any:
    """The model on the GPU of this process. Raises ``ValueError`` for one that cannot go there, or without a GPU."""
    import torch

    if not callable(getattr(model, "to", None)):
        raise ValueError(
            f"preference.scoring.gpus: a {type(model).__name__} scores on the CPU, it has no method to(device); use 0"
        )
    if not torch.cuda.is_available():
        raise ValueError("preference.scoring.gpus: torch finds no GPU where the scoring actor runs; use 0")
    return model.to("cuda")


class Actors:
    """``replicas`` Ray actors that share the blocks; every process of a run asks the same ones, by name.

    An actor that is lost is started again. Raises ``RuntimeError`` where Ray does not run.
    """

    def __init__(self, directory: str, scoring: ScoringConfig):
        self.directory, self.scoring = str(Path(directory).resolve()), scoring
        self.handles: dict[int, Any] = {}
        self.turn = os.getpid()  # callers begin with different replicas

    def start(self) -> None:
        for number in range(self.scoring.replicas):
            self._actor(number)

    def _actor(self, number: int) -> Any:
        import ray

        if not ray.is_initialized():
            raise RuntimeError(
                "preference.scoring.replicas asks Ray actors for scores, but Ray does not run; use 0 for the model in "
                "this process"
            )
        if number not in self.handles:
            # No CPU is reserved: whoever asks waits for the answer.
            remote: Any = ray.remote(ScoringActor).options(
                name=actor_name(self.directory, number),
                get_if_exists=True,
                num_cpus=0,
                num_gpus=self.scoring.gpus,
                max_restarts=LOST,
                max_task_retries=LOST,  # asking twice changes nothing
            )
            self.handles[number] = remote.remote(self.directory, self.scoring.gpus)
        return self.handles[number]

    def answers(self, blocks: Sequence[Block]) -> list[np.ndarray]:
        import ray

        out: dict[int, np.ndarray] = {}
        for attempt in range(LOST + 1):
            shares: dict[int, list[int]] = {}
            for place in (n for n in range(len(blocks)) if n not in out):
                shares.setdefault((self.turn + place) % self.scoring.replicas, []).append(place)
            waiting = {n: self._actor(n).answers.remote([blocks[p] for p in share]) for n, share in shares.items()}
            for number, answer in waiting.items():
                try:
                    out |= dict(zip(shares[number], ray.get(answer)))
                except ray.exceptions.RayActorError as error:
                    if attempt == LOST or getattr(error, "actor_init_failed", False):
                        raise
                    self.handles.pop(number, None)
            if len(out) == len(blocks):
                break
        self.turn += len(blocks)
        return [np.array(out[place]) for place in range(len(blocks))]


def actor_name(directory: str, number: int) -> str:
    """Names are a job's own: two runs on one cluster do not meet."""
    return f"sidgym-preference:{directory}:{number}"


def gpus_of_scoring(scoring: ScoringConfig) -> int:
    """GPUs that the actors take up: a share of one does not reach over to another."""
    if scoring.replicas < 1 or scoring.gpus <= 0:
        return 0
    if scoring.gpus > 1:
        return scoring.replicas * math.ceil(scoring.gpus)
    return -(-scoring.replicas // int(1 / scoring.gpus + 1e-9))


# In the loop ---------------------------------------------------------------------------------------------------------


def scorer(directory: str, scoring: ScoringConfig) -> Scorer:
    """What RL asks for the scores of the model saved in ``directory``. The model is not loaded where actors have it."""
    if scoring.replicas > 0:
        return Scorer(Actors(directory, scoring), max(1, scoring.cache))
    return Scorer(Here(load_preference(directory)), scoring.cache)


def scorer_of(reward: RewardSum) -> Scorer | None:
    """The scorer that a reward asks, if it asks one."""
    found = reward.context.preference
    return found if isinstance(found, Scorer) else None


def check_scoring(scoring: ScoringConfig, rl: RlConfig, where: str = "rl") -> None:
    """Raises ``ValueError`` for settings that cannot work with this arm, whose rewards ask the model."""
    if scoring.gpus > 0 and scoring.replicas < 1:
        raise ValueError("preference.scoring.gpus is a share for each actor: set preference.scoring.replicas, too")
    if scoring.gpus > 1 and scoring.gpus != int(scoring.gpus):
        raise ValueError(f"preference.scoring.gpus: expected a share of one GPU or a whole number, got {scoring.gpus}")
    if scoring.replicas > 0 and rl.backend == "torch":
        raise ValueError(
            f"{where}: preference.scoring.replicas = {scoring.replicas} asks Ray actors, which backend 'torch' does "
            "without; use rl.backend = 'rllib' or 'fsdp', or replicas = 0"
        )


PREFIX = "time/preference"
"""What figures of an iteration call the cost of scoring."""
_FIGURES = {f.name: f"{PREFIX}_{f.name}" for f in fields(Account)}


def scoring_figures(account: Account | None, processes: int = 1) -> dict[str, float]:
    """An account of an iteration as figures, a mean over the processes that rolled out; none without one."""
    if account is None:
        return {}
    return {key: getattr(account, name) / max(1, processes) for name, key in _FIGURES.items()}


def split_times(figures: dict[str, float], wall: float) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of an iteration that took ``wall`` seconds without those of time, and these by themselves.

    The second hold ``time/iteration``, and of a run with a preference model ``time/preference_share`` (the seconds that
    a process waited for scores, as a share of the iteration), ``time/preference_seconds`` and
    ``time/preference_remembered`` (a share of the scores asked for). They differ from run to run, all others do not.
    """
    plain = {name: value for name, value in figures.items() if not name.startswith(PREFIX)}
    times = {"time/iteration": wall}
    seconds, asked, remembered = (figures.get(_FIGURES[name]) for name in ("seconds", "asked", "remembered"))
    if seconds is not None:
        times |= {f"{PREFIX}_share": seconds / wall if wall > 0 else 0.0, f"{PREFIX}_seconds": seconds}
        times[f"{PREFIX}_remembered"] = (remembered or 0.0) / asked if asked else 0.0
    return plain, times


def taken(reward: RewardSum) -> Account | None:
    """What this process has waited for scores since it was last asked; None where it asks for none."""
    found = scorer_of(reward)
    return found.account.taken() if found else None
