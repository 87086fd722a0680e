"""The training loop of neural baselines by a scripted judge: when it stops, what it keeps, what it refuses to go on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sidgym.agents.config import SftConfig
from sidgym.benchmarks.baseline_settings import SFT, TRIALS
from sidgym.benchmarks.baselines.caser import CaserNetwork, CaserSettings
from sidgym.benchmarks.baselines.gru4rec import Gru4RecNetwork, Gru4RecSettings
from sidgym.benchmarks.baselines.tiger import TigerSettings
from sidgym.benchmarks.baselines.tiger_network import TigerNetwork, TigerShape
from sidgym.benchmarks.baselines.training import Plan, Training, _groups
from sidgym.benchmarks.own_models import label

PLAN = Plan(epochs=20, patience=2, lr=0.1)


def scripted(values: list[float], plan: Plan = PLAN, data: str = "log") -> tuple[Training, list[Tensor]]:
    """A training whose validations are ``values``, and the weights that stood at each of them."""
    network, seen, told = nn.Linear(1, 1), [], iter(values)
    with torch.no_grad():
        network.weight.fill_(0.0)

    def batches(rng: np.random.Generator) -> Iterator[Tensor]:
        yield torch.ones(1, 1)

    def judge() -> float:
        seen.append(network.weight.detach().clone())
        return next(told)

    training = Training(network, plan, 0, batches, lambda batch: (network(batch) - 9).square().mean(), judge, data)
    return training, seen


def test_training_stops_when_patience_is_over_and_keeps_the_weights_of_the_best_epoch() -> None:
    training, seen = scripted([0.1, 0.3, 0.2, 0.2, 0.9])
    report = training.run()
    assert (report["epochs"], report["best_epoch"], report["best_epoch_ndcg@10"]) == (4, 2, 0.3)
    assert len({float(weight) for weight in seen}) == 4
    assert torch.equal(training.network.weight, seen[1])  # type: ignore[arg-type]


def test_a_better_epoch_gives_new_patience_and_an_equal_one_does_not() -> None:
    report = scripted([0.1, 0.0, 0.2, 0.2, 0.2, 0.9])[0].run()
    assert (report["epochs"], report["best_epoch"]) == (5, 3)


def test_a_checkpoint_belongs_to_its_data_and_settings_but_not_to_a_device(tmp_path: Path) -> None:
    scripted([0.1, 0.3, 0.2, 0.2])[0].run(tmp_path / "t")
    with pytest.raises(ValueError, match=r"other settings or data: \{'data': 'log'\}"):
        scripted([], data="another log")[0].run(tmp_path / "t")
    with pytest.raises(ValueError, match="'plan'"):
        scripted([], replace(PLAN, lr=0.2))[0].run(tmp_path / "t")
    elsewhere, _ = scripted([], replace(PLAN, device="cpu:0"))
    assert elsewhere.run(tmp_path / "t")["best_epoch"] == 2


def test_weight_decay_acts_on_all_matrices_but_embeddings() -> None:
    def names(network: nn.Module) -> tuple[set[str], set[str]]:
        plain, decayed = ({id(p) for p in group["params"]} for group in _groups(network, 0.1))
        found = [{name for name, p in network.named_parameters() if id(p) in part} for part in (plain, decayed)]
        assert len(plain) + len(decayed) == len(list(network.parameters()))
        return found[0], found[1]

    plain, decayed = names(Gru4RecNetwork(5, Gru4RecSettings(width=4, hidden=4)))
    assert decayed == {"gru.weight_ih_l0", "gru.weight_hh_l0", "out.weight"}
    assert "item.weight" in plain
    _, decayed = names(CaserNetwork(5, CaserSettings(width=4, length=2, horizontal=2)))
    assert {"horizontal.0.weight", "horizontal.1.weight", "vertical.weight"} <= decayed


def test_tiger_is_tried_up_to_the_size_of_our_policy_and_is_validated_alike() -> None:
    codes = torch.zeros(2, 4, dtype=torch.long)
    sizes = []
    for trial in TRIALS["tiger"]:
        plan = TigerSettings(**trial)
        shape = TigerShape((256,) * 4, plan.width, plan.layers, plan.heads, plan.head_width, plan.inner, plan.dropout)
        sizes.append(sum(p.numel() for p in TigerNetwork(shape, codes).parameters()) / 1e6)
    assert [round(size, 1) for size in sizes] == [0.6, 0.6, 1.1, 2.3]
    ours, theirs = SftConfig(**SFT), TigerSettings()
    assert (ours.eval_users, ours.patience) == (theirs.eval_users, theirs.patience)


def test_the_folder_of_our_own_training_belongs_to_its_data_and_settings(tmp_path: Path) -> None:
    label(tmp_path / "a", {"seed": 1, "data": "x"})
    label(tmp_path / "a", {"seed": 1, "data": "x"})
    with pytest.raises(ValueError, match=r"other settings or data: \{'data': 'x'\}"):
        label(tmp_path / "a", {"seed": 1, "data": "y"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "checkpoint-000001").mkdir()
    with pytest.raises(ValueError, match="holds a training"):
        label(tmp_path / "b", {"seed": 1, "data": "x"})
