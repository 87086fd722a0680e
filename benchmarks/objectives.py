"""Every objective from the same supervised checkpoint: what it earns, how far it goes, and what it does on the way.

python -m sidgym.benchmarks.objectives --seeds 3 --keep      # results/objectives.json
python -m sidgym.benchmarks.objectives --quick               # a smoke run
"""

from pathlib import Path

import numpy as np

from sidgym.agents.logging import read_metrics
from sidgym.benchmarks.runs import main

QUICK = """
--data.users 300 --data.items 200 --sid.codes 16 --sft.epochs 2 --preference.epochs 2 --eval.bootstrap 200
--rl.steps 3 --rl.eval-every 3 --rl.contexts-per-step 16 --rl.minibatch 8 --log.wandb disabled --workers 1
""".split()  # noqa: SIM905 - a command line reads better as one
TRAINING = ("reward", "kl/k2", "entropy", "rollout/unique_items", "rollout/valid", "grad_norm", "ratio_max")
"""Figures of training iterations. Over beams, which are no draws, the mean of ``k1`` can be negative and that of ``k3``
is that of its few largest; ``k2`` is neither."""
VALIDATED = ("eval/reward", "trie/legal_mass")
"""Figures of validations; the last is there for every arm."""
LAST = 10
"""Iterations at the end of a run over which they are averaged."""


def training_figures(folder: Path) -> dict[str, dict[str, list[float]]]:
    """By arm and figure one value a seed, from the logs of a run: means over its ``LAST`` iterations, what it was
    validated to earn at the end, and ``rollouts``: groups drawn for each group of a batch, the mean over all iterations
    (above 1 where groups are refilled). A figure that an arm has not is left out, as the reward is without rewards."""
    out: dict[str, dict[str, list[float]]] = {}
    seeds = sorted(folder.glob("seed-*"), key=lambda seed: int(seed.name.partition("-")[2])) or [folder]
    for seed in seeds:
        for log in sorted(seed.glob("rl*/metrics.jsonl")):
            rows = read_metrics(log)
            arm = out.setdefault(log.parent.name, {})
            steps = [row for row in rows if "grad_norm" in row]
            validated = [row for row in rows if VALIDATED[-1] in row][-1:]
            rewarded = any(VALIDATED[0] in row for row in validated)
            for name in TRAINING:
                values = [row[name] for row in steps[-LAST:] if row.get(name) is not None]
                if steps and len(values) == len(steps[-LAST:]) and (rewarded or name != "reward"):
                    arm.setdefault(name, []).append(float(np.mean(values)))
            if steps:
                drawn = [1 + (row.get("refill/rounds") or 0.0) for row in steps]
                arm.setdefault("rollouts", []).append(float(np.mean(drawn)))
            for name in VALIDATED:
                for row in validated:
                    if row.get(name) is not None:
                        arm.setdefault(name, []).append(float(row[name]))
    return out


if __name__ == "__main__":
    main(
        "objectives",
        (__doc__ or "").splitlines()[0],
        QUICK,
        [],
        more=lambda folder: {"training": training_figures(folder)},
    )
