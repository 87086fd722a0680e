"""The stage ``preference``: the model of what users want, and the gate before it.

A folder with ``model`` (the model, and ``gate.json`` beside it), ``report.json`` (what the model says of itself) and
``gate_report.json`` (what the gate passes and rejects). Left out: the models (``envs.preference``), the gate
(``envs.gate``), and showing all that (``preference_inspect``).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.agents.scoring import check_scoring
from sidgym.envs.datasets import DataSet
from sidgym.envs.gate import Gate, check_gate, choose_gate, judge_gate
from sidgym.envs.preference import PREFERENCES, PreferenceData, fit_preference, known_settings
from sidgym.envs.relevance import RELEVANCES, Classifier, relevance_function
from sidgym.envs.reward_context import RewardContext
from sidgym.envs.rewards import may_read
from sidgym.envs.splits import load_splits
from sidgym.launch import builders
from sidgym.launch.schema import PreferenceConfig, RunConfig, arms_of
from sidgym.sid.registry import resolve
from sidgym.sid.table import SidTable

REPORT, GATE_REPORT = "report.json", "gate_report.json"
DIN_EPOCHS = 8


def build_preference(config: RunConfig, work: Path, on_progress: Any, name: str) -> None:
    """Fits the model on the training users' log alone, and chooses the gate on validation users."""
    root, chosen = config.directory, config.preference
    dataset, splits = DataSet.load(root / "data"), load_splits(root / "data")
    embeddings, popularity = builders.text_embeddings(root), root / "data" / "popularity.npy"
    context = RewardContext(
        table=SidTable.load(root / "sid"),
        embeddings=np.load(embeddings) if embeddings.exists() else None,
        popularity=np.load(popularity) if popularity.exists() else None,
        catalogue=dataset.catalogue,
    )
    # Of the sequences that SFT reads: RL's targets and whoever judges later are new to it. Before the model is trained,
    # which a gate that cannot be asked would throw away.
    classifier = Classifier.fit(splits.sft, context, config.data.history, config.seed)
    try:
        relevance_function(chosen.relevance, replace(context, gate=Gate(chosen.relevance, {}, classifier)))
    except ValueError as error:
        text = f"preference.relevance = {chosen.relevance!r}: {error}; 'prefix' needs the SIDs alone"
        raise ValueError(text) from error
    data = PreferenceData.of(dataset.interactions, splits, dataset.catalogue, context.embeddings, context.table)
    model = fit_preference(chosen.kind, data, config.seed, **fit_settings(config))
    if missing := [name for name in ("auc", "ece") if name not in model.report]:
        raise ValueError(
            f"preference model {chosen.kind!r}: its report must tell {' and '.join(missing)} of users held out, as "
            f"envs.preference.protocol says; it has {', '.join(sorted(model.report)) or 'nothing'}"
        )
    gate = choose_gate(context, splits.valid, chosen.relevance, chosen.tau, chosen.keep, classifier)
    told = judge_gate(context, gate, model, splits.valid, config.seed, chosen.keep)
    told["chosen"] = chosen.tau == "auto"
    model.save(work / "model")
    gate.save(work / "model")
    for file, figures in ((REPORT, model.report), (GATE_REPORT, told)):
        (work / file).write_text(json.dumps(figures, indent=2) + "\n")
    if on_progress:
        said = f"AUC {model.report['auc']:.3f}, ECE {model.report['ece']:.3f} on held-out training users"
        on_progress(1, 1, f"{said}; gate {gate.relevance} > {told['tau']:.3g}")


def fit_settings(config: RunConfig) -> dict[str, Any]:
    """What the kind's ``fit`` is called with: as much history as RL's contexts have, ``epochs``, and ``settings``.

    Of the first two only what the kind takes.
    """
    chosen = config.preference
    epochs = chosen.epochs or (DIN_EPOCHS if chosen.kind == "din" else 0)
    known = known_settings(chosen.kind) or []
    given = {"history": config.data.history, **({"epochs": epochs} if epochs else {})}
    return {**{name: value for name, value in given.items() if name in known}, **chosen.settings}


def fitted_settings(preference: PreferenceConfig) -> dict[str, Any]:
    """The settings that the stage's result depends on: not how RL asks for scores."""
    return {name: value for name, value in vars(preference).items() if name != "scoring"}


def check_preference(config: RunConfig) -> None:
    """Everything that can be said before the first stage spends any time. Raises ``ValueError``."""
    chosen = config.preference
    if not chosen.enabled:
        return
    kind = resolve("preference model", chosen.kind, PREFERENCES)
    known = known_settings(chosen.kind)
    if unknown := sorted(set(chosen.settings) - set(known if known is not None else chosen.settings)):
        raise ValueError(
            f"preference.settings: kind {chosen.kind!r} has no setting {unknown[0]!r}; it has {', '.join(known or ())}"
        )
    check_gate(chosen.relevance, chosen.tau, chosen.keep, list(RELEVANCES))
    for name, rl in arms_of(config).items():
        if may_read(rl.rewards, "preference"):
            check_scoring(chosen.scoring, rl, name)
            if chosen.scoring.gpus > 0 and not callable(getattr(kind, "to", None)):
                raise ValueError(
                    f"preference.scoring.gpus: kind {chosen.kind!r} scores on the CPU, it has no method to(device); "
                    "use another kind, or 0"
                )
