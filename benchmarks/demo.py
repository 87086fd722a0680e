"""The demonstration over several seeds: does RL raise the true preference of held-out users?

python -m sidgym.benchmarks.demo --seeds 3 --keep      # results/demo.json
python -m sidgym.benchmarks.demo --quick               # a smoke run
"""

from sidgym.benchmarks.runs import main

QUICK = """
--data.users 300 --data.items 200 --sid.codes 16 --sft.epochs 2 --preference.epochs 2 --eval.bootstrap 200
--rl.steps 3 --rl.eval-every 3 --rl.contexts-per-step 16 --log.wandb disabled --workers 1
""".split()  # noqa: SIM905 - a command line reads better as one

if __name__ == "__main__":
    main("demo", __doc__.splitlines()[0], QUICK, [])
