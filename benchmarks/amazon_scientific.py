"""Amazon "Industrial & Scientific" from raw files to a report: SFT, SFT + GRPO and their controls.

python -m sidgym.benchmarks.amazon_scientific --data-path FOLDER --seeds 1 --keep     # results/amazon_scientific.json
python -m sidgym.benchmarks.amazon_scientific --quick                                 # a smoke run, needs no data
"""

from sidgym.benchmarks.runs import main

QUICK = """
--policy.hidden-size 32 --policy.intermediate-size 64 --policy.layers 1 --policy.heads 2 --policy.kv-heads 1
--sid.codes 16 --sft.epochs 2 --rl.steps 3 --rl.eval-users 100 --sft.eval-users 100 --eval.max-users 100
--eval.bootstrap 200 --log.wandb disabled --workers 1
""".split()  # noqa: SIM905 - a command line reads better as one

if __name__ == "__main__":
    main("amazon_scientific", __doc__.splitlines()[0], QUICK, [], data_path=True)
