"""GRPO, ECPO, GBPO and GRPO-SR from the same supervised checkpoint on Amazon "Industrial & Scientific".

python -m sidgym.benchmarks.objectives_scientific --data-path FOLDER --keep   # results/objectives_scientific.json
python -m sidgym.benchmarks.objectives_scientific --quick                     # a smoke run, needs no data
"""

from sidgym.benchmarks.objectives import training_figures
from sidgym.benchmarks.runs import main

QUICK = """
--policy.hidden-size 32 --policy.intermediate-size 64 --policy.layers 1 --policy.heads 2 --policy.kv-heads 1
--sid.codes 16 --sft.epochs 2 --rl.steps 3 --rl.eval-every 3 --rl.eval-users 100 --sft.eval-users 100
--eval.max-users 100 --eval.bootstrap 200 --log.wandb disabled --workers 1
""".split()  # noqa: SIM905 - a command line reads better as one

if __name__ == "__main__":
    main(
        "objectives_scientific",
        (__doc__ or "").splitlines()[0],
        QUICK,
        [],
        data_path=True,
        more=lambda folder: {"training": training_figures(folder)},
    )
