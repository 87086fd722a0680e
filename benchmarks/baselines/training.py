"""Training of neural baselines: one loop for all, which stops on validation NDCG@10 and can be interrupted.

After every epoch the network is judged on validation contexts; the best weights are kept, and training ends when
``patience`` epochs brought none better. With a directory each epoch leaves a checkpoint, and a training that was killed
goes on behind the last whole epoch to the same weights as one that was not, since every epoch draws from a stream of
its own. Left out: what a batch is and what is learned from it, which is up to the network (``sequential``, ``tiger``).
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidgym.agents.checkpoint import load_training, optimizer_tensors, restore_optimizer, save_training
from sidgym.agents.precision import mixed_precision
from sidgym.benchmarks.baselines.protocol import OnEpoch

Batch = Any
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """Settings of a training that every neural baseline has."""

    history: int = 50
    """Items of a history that are read at most."""
    epochs: int = 200
    patience: int = 10
    """Epochs without a better validation NDCG@10 before training stops."""
    batch: int = 128
    """Sequences (TIGER: prefixes) a step."""
    lr: float = 1e-3
    weight_decay: float = 0.0
    """Of AdamW, on whatever has two dimensions or more and is no embedding."""
    warmup: int = 0
    """Steps over which the learning rate rises."""
    inverse_sqrt: bool = False
    """Behind the warm-up the learning rate falls with the inverse square root of the step, else it stays."""
    clip: float = 0.0
    """Norm to which gradients are cut; 0: never."""
    eval_users: int = 0
    """Validation contexts, evenly spaced; 0 takes all."""
    precision: str = "float32"
    """Of the passes: float32 or bfloat16. Weights and optimiser stay in float32."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {name: getattr(self, name) for name in ("history", "epochs", "patience", "batch")}
        wrong = {name: value for name, value in whole.items() if value < 1}
        if wrong or not self.lr > 0 or self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                "expected sizes of at least 1, a positive lr and precision float32 or bfloat16; got "
                f"{wrong or (self.lr, self.precision)}"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        start = max(self.warmup, 1)
        if step < start:
            return self.lr * (step + 1) / start
        return self.lr * (math.sqrt(start / (step + 1)) if self.inverse_sqrt else 1.0)


@dataclass
class Position:
    """How far a training has come."""

    epoch: int = 0  # epochs done
    step: int = 0
    best: float = -1.0  # validation NDCG@10
    best_epoch: int = 0
    seconds: float = 0.0  # of the processor
    history: list[dict[str, float]] = field(default_factory=list)  # one entry an epoch


class Training:
    """Trains ``network`` in place; make it and call ``run``.

    ``batches(rng)`` gives an epoch's batches, ``loss(batch)`` a scalar, ``judge()`` validation NDCG@10; ``data`` names
    what is learned from, so that a checkpoint of other data is refused.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, seed: int, batches: Callable[[np.random.Generator], Iterable[Batch]],
        loss: Callable[[Batch], Tensor], judge: Callable[[], float], data: str = "",
    ) -> None:  # fmt: skip
        self.network, self.plan, self.seed, self.data = network, plan, seed, data
        self.batches, self.loss, self.judge = batches, loss, judge
        self.optimizer = torch.optim.AdamW(_groups(network, plan.weight_decay), lr=plan.lr)
        self.at = Position()
        self.best_weights: Tensors = {}

    def run(self, directory: Path | None = None, on_epoch: OnEpoch | None = None) -> dict[str, Any]:
        """Trains to the end and leaves the best weights in the network; what is to be told of it.

        Raises ``ValueError`` for a loss that is not finite and for a checkpoint of other settings or data.
        """
        if directory is not None and (directory / "training.json").exists():
            self._resume(directory)
        with torch.random.fork_rng(devices=[]):
            while self.at.epoch < self.plan.epochs and self.at.epoch - self.at.best_epoch < self.plan.patience:
                self._epoch()
                if directory is not None:
                    self._save(directory)
                if on_epoch:
                    on_epoch(self.at.history[-1])
        self.network.load_state_dict(self.best_weights)
        self.network.eval()
        return {
            "epochs": self.at.epoch,
            "best_epoch": self.at.best_epoch,
            "best_epoch_ndcg@10": self.at.best,
            "steps": self.at.step,
            "cpu_seconds": round(self.at.seconds, 1),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "history": self.at.history,
        }

    def _epoch(self) -> None:
        start = time.process_time()
        stream = np.random.SeedSequence([self.seed, self.at.epoch])
        torch.manual_seed(int(stream.generate_state(1)[0]))  # dropout and masks
        self.network.train()
        losses = [self._step(batch) for batch in self.batches(np.random.default_rng(stream))]
        self.network.eval()
        with torch.inference_mode():
            value = self.judge()
        self.at.epoch += 1
        if value > self.at.best:
            self.at.best, self.at.best_epoch = value, self.at.epoch
            self.best_weights = {name: v.detach().clone() for name, v in self.network.state_dict().items()}
        self.at.seconds += time.process_time() - start
        figures = {"epoch": self.at.epoch, "loss": float(np.mean(losses)), "ndcg@10": value}
        self.at.history.append(figures | {"cpu_seconds": round(self.at.seconds, 1)})

    def _step(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.at.step)
        kind = torch.device(self.plan.device).type
        with mixed_precision(kind, self.plan.precision):
            loss = self.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"the loss of step {self.at.step} is {value}; lower lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
        self.optimizer.step()
        self.at.step += 1
        return value

    def _save(self, directory: Path) -> None:
        tensors = {f"now/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best_weights.items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        on_cpu = {name: value.cpu() for name, value in tensors.items()}
        save_training(directory, on_cpu, {**self._asked(), "at": asdict(self.at)})

    def _resume(self, directory: Path) -> None:
        tensors, position = load_training(directory)
        other = {name: position.get(name) for name, value in self._asked().items() if position.get(name) != value}
        if other:
            raise ValueError(f"{directory} holds a training of other settings or data: {other}; give another folder")
        self.at = Position(**position["at"])
        self.network.load_state_dict(_below(tensors, "now/"))
        self.best_weights = _below(tensors, "best/")
        restore_optimizer(self.optimizer, _below(tensors, "optimizer/"))

    def _asked(self) -> dict[str, Any]:
        """What a checkpoint has to agree in; the device changes nothing that is learned."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "device"}
        asked: dict[str, Any] = json.loads(json.dumps({"seed": self.seed, "data": self.data, "plan": plan}))
        return asked


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Whatever has two dimensions or more and is no embedding with weight decay, everything else without."""
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    parts: list[list[nn.Parameter]] = [[], []]
    for parameter in network.parameters():
        parts[parameter.dim() >= 2 and id(parameter) not in embeddings].append(parameter)
    return [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (0.0, weight_decay)) if part]
