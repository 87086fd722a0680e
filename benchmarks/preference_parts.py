"""What ``preference`` measures at one seed: models of preference against the truth, and a policy trained on one.

``prepare`` makes what all arms of a seed share, in a folder: the log, the supervised policy, and every kind of model
with its gate, fitted on training users alone. ``train`` is one arm of RL from there. Left out: how
they are judged (``preference_held``), which arms there are, and figures over seeds (``preference``).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidgym.agents.audit import HackingMonitor
from sidgym.agents.checkpoint import load_policy, save_policy
from sidgym.agents.config import PolicyConfig, RewardConfig, RlConfig, SftConfig
from sidgym.agents.policy import build_policy
from sidgym.agents.scoring import split_times
from sidgym.agents.sft import train_sft
from sidgym.agents.task import RlTask, save_episodes
from sidgym.agents.trainer import TorchTrainer
from sidgym.benchmarks.preference_held import Held, divergence, gate_figures, gate_price, on_logged_pages
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import DataSet, load_dataset
from sidgym.envs.gate import Gate, choose_gate, judge_gate
from sidgym.envs.preference import (
    Preference,
    PreferenceData,
    fit_preference,
    known_settings,
    load_preference,
)
from sidgym.envs.records import Episodes, Splits
from sidgym.envs.relevance import Classifier, relevance_function
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.simulator import Truth
from sidgym.envs.splits import split
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import build_table

TEXT = "text"
"""The relevance that a gate asks by default, and the one by which ``passed`` is told in all arms."""
OWN = ("auc", "log_loss", "ece", "ece_before", "base_rate", "negatives", "epochs")
"""Figures of a model's own report: of its own label, and of training users whom neither fit nor calibration saw."""


@dataclass(frozen=True)
class Model:
    """A model of preference and what it may learn from."""

    kind: str  # of PREFERENCES
    settings: Mapping[str, Any] = field(default_factory=dict)
    users: int = 0  # training users that it is fitted on, drawn at random; 0: all
    draw: int = 0  # models of other numbers are fitted on other users

    def fit(self, data: PreferenceData, history: int, seed: int) -> Preference:
        """The fitted model, which reads ``history`` items if its kind lets that be said."""
        if self.users:
            order = np.random.default_rng([seed, 8]).permutation(data.users)
            data = replace(data, users=np.sort(order[self.draw * self.users : (self.draw + 1) * self.users]))
        known = known_settings(self.kind) or ()
        given = {"history": history} if "history" in known else {}
        return fit_preference(self.kind, data, seed, **{**given, **self.settings})


@dataclass(frozen=True)
class Arm:
    """One way to reward, from the policy that all arms start from."""

    model: str = "din"  # name in Setting.models; none: the likelihood of the targets alone
    gate: bool = True
    anchor: bool = True
    nll: float = 0.1
    lr: float = 1e-3
    relevance: str = TEXT
    tau: float | str = "auto"  # of the gate; auto: chosen on validation users

    def config(self, rl: RlConfig) -> RlConfig:
        """``rl`` as this arm trains."""
        if not self.model:
            return replace(rl, objective="nll", rewards=(), nll_weight=self.nll, lr=self.lr)
        args = {"gate": self.gate, "anchor": self.anchor, "relevance": self.relevance, "tau": self.tau}
        return replace(rl, rewards=(RewardConfig("gated", args=args),), nll_weight=self.nll, lr=self.lr)


@dataclass(frozen=True)
class Setting:
    """What all arms of a run share."""

    data: DataConfig
    codes: int
    policy: PolicyConfig
    sft: SftConfig
    rl: RlConfig
    checkpoints: tuple[int, ...]  # iterations after which the policy is judged, besides 0 and the last
    models: Mapping[str, Model]
    timed: int  # iterations that the share of scoring is taken from
    gates: Mapping[str, tuple[str, float | str]]  # name -> relevance and threshold, whose price is told
    beam: int = 50  # of the judged lists, and the candidates that correlations on generated items are taken over
    most: int = 0  # judged contexts at most; 0 judges all
    users: str = "test"  # or "valid": who is judged

    def steps(self) -> list[int]:
        """Iterations after which the policy is judged."""
        return sorted({0, *(n for n in self.checkpoints if n < self.rl.steps), self.rl.steps})


# A seed's start ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A simulated log, its splits, and what is known of the items."""

    dataset: DataSet
    splits: Splits
    table: SidTable
    embeddings: np.ndarray

    @classmethod
    def of(cls, setting: Setting, seed: int) -> "Store":
        """The same every time."""
        dataset = load_dataset(setting.data, seed)
        sid, texts = SidConfig(codes=setting.codes), dataset.catalogue.texts()
        embeddings = make_embedder(sid, seed).fit(texts).embed(texts)
        table = build_table(embeddings, dataset.catalogue.ids, sid, seed)
        return cls(dataset, split(dataset, setting.data, seed), table, embeddings)

    @property
    def truth(self) -> Truth:
        """What users like. Raises ``ValueError`` for a log that was not simulated."""
        if self.dataset.truth is None:
            raise ValueError("the honest test of a reward needs a simulated log, whose truth is known")
        return self.dataset.truth

    @property
    def context(self) -> RewardContext:
        """What the gate reads."""
        return RewardContext(table=self.table, embeddings=self.embeddings, catalogue=self.dataset.catalogue)


def held_out(setting: Setting, splits: Splits) -> Episodes:
    """The contexts that are judged."""
    if setting.users not in ("test", "valid"):
        raise ValueError(f"users: expected test or valid, got {setting.users!r}")
    episodes: Episodes = getattr(splits, setting.users)
    return episodes.spread(setting.most)


def prepare(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Everything that the arms of a seed begin with, left in ``folder``; figures of the models and of the start."""
    torch.set_num_threads(1)
    begin = time.process_time()
    store = Store.of(setting, seed)
    dataset, splits, context = store.dataset, store.splits, store.context
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "embeddings.npy", store.embeddings)
    save_episodes(folder / "contexts.npz", splits.rl)
    policy = build_policy(setting.policy, store.table, seed)
    train_sft(policy, splits.sft, splits.valid, setting.sft, setting.data.history, seed)
    save_policy(folder / "sft", policy, {"history": setting.data.history})
    spent = {"sft": time.process_time() - begin}
    data = PreferenceData.of(dataset.interactions, splits, dataset.catalogue, store.embeddings, store.table)
    classifier = Classifier.fit(splits.sft, context, setting.data.history, seed)
    gate = choose_gate(context, splits.valid, TEXT, "auto", classifier=classifier)
    models: dict[str, Preference] = {}
    told: dict[str, Any] = {}
    episodes = held_out(setting, splits)
    users = np.unique(episodes.user)
    for name, asked_for in setting.models.items():
        begin = time.process_time()
        models[name] = model = asked_for.fit(data, setting.data.history, seed)
        spent[name] = time.process_time() - begin
        model.save(folder / name)
        gate.save(folder / name)
        told[name] = {"own": {figure: model.report.get(figure) for figure in OWN}}
        told[name] |= on_logged_pages(model, dataset.interactions, store.truth, users, setting.data.history)
        told[name]["gate"] = gate_figures(judge_gate(context, gate, model, splits.valid, seed))
    begin = time.process_time()
    held = Held(episodes, store.truth, models, relevance_function(TEXT, context), gate.threshold(TEXT))
    per_user, agreement = held.judge(policy, setting.beam)
    spent["judge"] = time.process_time() - begin
    for name in models:
        told[name]["share_of_iteration"] = share_of_iteration(setting, seed, folder, name)
    return {
        "models": told,
        "generated": agreement,
        "gates": {name: gate_price(held, context, *of, gate) for name, of in setting.gates.items()},
        "point": point(per_user, 0, 0.0),
        "per_user": {name: values.tolist() for name, values in per_user.items()},
        "cpu_s": spent,
    }


def share_of_iteration(setting: Setting, seed: int, folder: Path, model: str) -> float:
    """Scoring's share of an iteration with the gated reward, the median of ``setting.timed`` from the start, where
    least is remembered."""
    trainer = TorchTrainer(task_of(setting, seed, folder, Arm(model)))
    return float(np.median([step(trainer, number)[1]["time/preference_share"] for number in range(setting.timed)]))


# An arm --------------------------------------------------------------------------------------------------------------


def task_of(setting: Setting, seed: int, folder: Path, arm: Arm) -> RlTask:
    """What a trainer of this arm learns from."""
    return RlTask(
        policy=str(folder / "sft"),
        contexts=str(folder / "contexts.npz"),
        seed=seed,
        config=arm.config(setting.rl),
        embeddings=str(folder / "embeddings.npy"),
        preference=str(folder / arm.model) if arm.model else "",
    )


def step(trainer: TorchTrainer, number: int) -> tuple[dict[str, float], dict[str, float]]:
    """One iteration: its figures, and what clocks say."""
    begin = time.perf_counter()
    figures = trainer.step(number)
    return split_times(figures, time.perf_counter() - begin)


def train(setting: Setting, seed: int, arm: Arm, folder: Path) -> dict[str, Any]:
    """One arm at one seed: the curve, and at its end figures of every judged context and the models' correlations."""
    torch.set_num_threads(1)
    begin = time.process_time()
    store = Store.of(setting, seed)
    models = {name: load_preference(folder / name) for name in setting.models}
    gate = Gate.load(folder / next(iter(models)))
    if gate is None:
        raise FileNotFoundError(f"{folder} holds no gate; remove seed-{seed}-start.json, so that it is made again")
    relevance = relevance_function(TEXT, store.context)
    held = Held(held_out(setting, store.splits), store.truth, models, relevance, gate.threshold(TEXT))
    trainer, judge = TorchTrainer(task_of(setting, seed, folder, arm)), load_policy(folder / "sft")
    start, monitor = load_policy(folder / "sft"), HackingMonitor()
    curve: list[dict[str, float]] = []
    rows: list[dict[str, float]] = []
    times: list[dict[str, float]] = []
    per_user: dict[str, np.ndarray] = {}
    agreement: dict[str, dict[str, float]] = {}
    for number in range(setting.rl.steps + 1):
        if number in setting.steps():
            judge.model.load_state_dict(trainer.weights(), strict=False)
            per_user, agreement = held.judge(judge.eval(), setting.beam)
            curve.append(point(per_user, number, divergence(judge, start, held.episodes) if number else 0.0))
            curve[-1] |= since(rows)
            rows = []
            if arm.model:
                monitor.observe(number, float(per_user[f"learned/{arm.model}"].mean()), per_user["ndcg@10"])
                curve[-1]["monitor"] = monitor.figures()["audit/reward_hacking"]
        if number < setting.rl.steps:
            figures, clock = step(trainer, number)
            rows.append(figures)
            times.append(clock)
    shares = [clock["time/preference_share"] for clock in times if "time/preference_share" in clock]
    return {
        "curve": curve,
        "generated": agreement,
        "share_of_iteration": float(np.mean(shares)) if shares else None,
        "remembered": float(np.mean([clock["time/preference_remembered"] for clock in times])) if shares else None,
        "per_user": {name: values.tolist() for name, values in per_user.items()},
        "cpu_s": time.process_time() - begin,
    }


def point(per_user: Mapping[str, np.ndarray], step: int, kl: float) -> dict[str, float]:
    """A point of the curve: means over the judged contexts."""
    return {"step": step, **{name: float(values.mean()) for name, values in per_user.items()}, "kl": kl}


TRAINED = {"reward": "train/reward", "audit/gated/pass_rate": "train/passed", "rollout/hit": "train/hit"}
"""Figures of training that the curve tells, as means since the point before."""


def since(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of ``TRAINED`` over some iterations."""
    return {
        told: float(np.mean([row[name] for row in rows]))
        for name, told in TRAINED.items()
        if rows and all(name in row for row in rows)
    }
