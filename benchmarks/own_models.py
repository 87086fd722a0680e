"""Our policy as a row of the table of baselines: the same logs, validation, trials and seeds, and the same judge.

``sid_policy`` is a causal language model over Semantic IDs, from random weights, trained on every training sequence.
The epoch that validates best is kept, with items of the history in the lists (``agents.sft``), under a cosine schedule
that ends with the last epoch, so that the patience which every other network has rarely binds. Left out: reinforcement
learning (``recipe``), and texts, which not every log has.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.evaluate import first_places, rank_contexts
from sidgym.agents.policy import Policy, build_policy, parameter_count
from sidgym.agents.sft import train_sft
from sidgym.benchmarks.baselines.protocol import BaselineData, OnEpoch, check_k
from sidgym.envs.records import PAD_ITEM, Episodes

OWN = {"sid_policy": "sidgym.benchmarks.own_models:fit_sid_policy"}
"""Name of a row -> what fits it (``registry.fit_baseline``)."""
HISTORY = 50
BEAM = 50
LABEL = "training_of.json"
"""In the folder of a training: settings, seed and data that it belongs to."""


class SidPolicy:
    """A trained policy that ranks items by beam search under the trie."""

    def __init__(self, policy: Policy, report: dict[str, Any]) -> None:
        self.policy, self.report = policy, report

    def rank(self, history: np.ndarray, k: int) -> np.ndarray:
        """The ``k`` best next items (B, k); see ``Baseline.rank``."""
        check_k(k, self.policy.trie.num_items)
        rows = np.arange(len(history))
        asked = Episodes(rows, rows, history[:, -HISTORY:], np.full((len(history), 1), PAD_ITEM))
        found = rank_contexts(self.policy, asked, max(k, BEAM), batch=128).items
        best = np.full((len(history), k), PAD_ITEM)
        places, _ = first_places(found, k)
        best[:, : places.shape[1]] = places
        return best


def fit_sid_policy(
    data: BaselineData,
    seed: int = 0,
    directory: Path | None = None,
    on_epoch: OnEpoch | None = None,
    policy: Mapping[str, Any] | None = None,
    sft: Mapping[str, Any] | None = None,
) -> SidPolicy:
    """Supervised training on all sequences; ``policy`` and ``sft`` are fields of ``PolicyConfig`` and ``SftConfig``.

    Goes on from ``directory`` where a training stands there. Raises ``ValueError`` without SIDs, for a training of
    other settings or data, and as ``train_sft``.
    """
    if data.table is None:
        raise ValueError("sid_policy generates Semantic IDs and got none; give the table of the items")
    config = SftConfig(**(sft or {}))
    if directory is not None:
        label(directory, {"seed": seed, "data": data.fingerprint, "policy": dict(policy or {}), "sft": dict(sft or {})})
    model = build_policy(PolicyConfig(**(policy or {})), data.table, seed)
    begin = time.process_time()

    def note(entry: Mapping[str, float]) -> None:
        if on_epoch:
            on_epoch({"epoch": int(entry["epoch"]), "loss": entry["train_loss"], "ndcg@10": entry["eval/ndcg@10"],
                      "cpu_seconds": time.process_time() - begin})  # fmt: skip

    result = train_sft(model, data.sequences, data.valid, config, HISTORY, seed, None, note, directory=directory)
    values = [entry["eval/ndcg@10"] for entry in result.history]
    report = {
        "settings": {"policy": dict(policy or {}), "sft": asdict(config)},
        "best_epoch_ndcg@10": max(values),
        "best_epoch": result.best_epoch,
        "epochs": len(values),
        "parameters": parameter_count(model.model),
    }
    return SidPolicy(model, report)


def label(directory: Path, asked: Mapping[str, Any]) -> None:
    """Says in an empty ``directory`` what is trained there; ``ValueError`` where it holds something else."""
    told, path = json.loads(json.dumps(asked)), directory / LABEL
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    other = {name: found.get(name) for name, value in told.items() if found.get(name) != value}
    if other and (found or (directory.exists() and any(directory.iterdir()))):
        raise ValueError(f"{directory} holds a training of other settings or data: {other}; give another folder")
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
