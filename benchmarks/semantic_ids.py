"""Which Semantic IDs to take: every tokeniser on the same items, and what a policy makes of its codes.

    python -m sidgym.benchmarks.semantic_ids --data-path FOLDER [--encoder FOLDER] --parts FOLDER --out FILE
    python -m sidgym.benchmarks.semantic_ids --quick             # a smoke run, needs no data

An arm is a way to give items their codes: tokeniser, embeddings, alignment, collision policy. All arms of a store and
seed have the same items, splits, model shape, SFT steps and test users; only the codes differ. The stores are the
simulator at the demonstration's size and, with ``--data-path``, Amazon "Industrial & Scientific" with K = 256, L = 3.
Nothing is tuned here: each tokeniser has its defaults. Two processes work side by side, so seconds of fitting are those
of the processor, not the wall's. ``--parts`` keeps what is done, so a run that was stopped goes on. The last line
printed is one JSON object. Left out: what is measured on an arm (``semantic_id_arms``), the page's tables
(``semantic_id_tables``).
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.benchmarks.comparisons import over_users
from sidgym.benchmarks.parts import in_parts
from sidgym.benchmarks.script import at_least_one, main
from sidgym.benchmarks.semantic_id_arms import BASE, Arm, Store, judge_arm
from sidgym.envs.config import DataConfig, EvalConfig
from sidgym.sid.rq_kmeans_plus import RQKMeansPlus
from sidgym.sid.rq_vae import RQVAE

RESAMPLES = 2000
QUICK_STEPS = 200

TOKENISERS = ("rq_kmeans", "balanced_rq_kmeans", "rq_vae", "rq_kmeans_plus", "random", "category")

ARMS = (
    *(Arm(name, tokenizer=name) for name in TOKENISERS),
    Arm("rq_kmeans, reassign", collisions="reassign"),
    Arm("rq_kmeans, keep", collisions="keep"),
    Arm("rq_kmeans, aligned", alignment="i2i_contrastive"),
)
ENCODER_ARMS = (
    Arm("rq_kmeans, encoder", embedder="encoder"),
    Arm("rq_kmeans, encoder, aligned", embedder="encoder", alignment="i2i_contrastive"),
)
"""Only where ``--encoder`` names a directory, and not in the simulator, whose texts are made of a few words."""

JUDGED = EvalConfig(beam=20, ks=(1, 5, 10))

SIMULATOR = Store(
    "simulator",
    data=DataConfig(),
    levels=3,
    codes=32,
    policy=PolicyConfig(),
    sft=SftConfig(epochs=12, patience=12),
    judged=JUDGED,
)
SCIENTIFIC = Store(
    "scientific",
    data=DataConfig(name="amazon", split="leave_one_out", rl_share=1.0),
    levels=3,
    codes=256,
    policy=PolicyConfig(hidden_size=128, intermediate_size=384, layers=3, dropout=0.2),
    sft=SftConfig(epochs=8, patience=8, lr=1e-3, weight_decay=0.1, eval_users=1000),
    judged=JUDGED,
)


def quick_store() -> Store:
    """A store that is through in seconds."""
    return replace(
        SIMULATOR,
        data=DataConfig(users=200, items=150),
        codes=8,
        policy=PolicyConfig(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=1),
        sft=SftConfig(epochs=1, eval_users=50),
        judged=EvalConfig(beam=10, ks=(1, 5, 10), max_users=60),
    )


@contextmanager
def short_fits(quick: bool) -> Iterator[None]:
    """With ``quick``, tokenisers that are networks take a few steps in this process."""
    kinds = (RQVAE, RQKMeansPlus) if quick else ()
    before = [kind.defaults for kind in kinds]
    for kind in kinds:
        kind.defaults = replace(kind.defaults, steps=QUICK_STEPS)
    try:
        yield
    finally:
        for kind, settings in zip(kinds, before):
            kind.defaults = settings


def planned(options: argparse.Namespace) -> list[tuple[Store, Arm]]:
    """What is measured at each seed."""
    if options.quick:
        return [(quick_store(), arm) for arm in ARMS]
    plan = [(SIMULATOR, arm) for arm in ARMS]
    if options.data_path:
        data, cache = replace(SCIENTIFIC.data, path=options.data_path), options.parts or ""
        store = replace(SCIENTIFIC, data=data, encoder=options.encoder, cache=str(cache))
        plan += [(store, arm) for arm in (*ARMS, *(ENCODER_ARMS if options.encoder else ()))]
    return plan


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every store and arm: one value a seed, and what each arm gains over ``rq_kmeans``, user by user."""
    plan = planned(options)
    jobs = [(store, arm, seed) for seed in options.seeds for store, arm in plan]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    named = {f"{store.name}-{arm.name.replace(', ', '+')}-{seed}": (store, arm, seed) for store, arm, seed in jobs}
    with short_fits(options.quick):
        for name, figures in in_parts(judge_arm, named, options.workers, options.parts):
            store, arm, seed = named[name]
            found[store.name, arm.name, seed] = figures
            print(f"{store.name}, {arm.name}, seed {seed}: {_line(figures)}", flush=True)
    stores: dict[str, Any] = {}
    for store, arm in plan:
        entry = stores.setdefault(store.name, {"settings": _settings(store), "arms": {}})
        entry["arms"][arm.name] = _over_seeds(found, store.name, arm, options.seeds)
    return {"resamples": RESAMPLES, "workers": options.workers, "stores": stores}


def _over_seeds(found: dict[tuple[str, str, int], Any], store: str, arm: Arm, seeds: list[int]) -> dict[str, Any]:
    parts = [found[store, arm.name, seed] for seed in seeds]
    base = [found[store, BASE, seed] for seed in seeds]
    out = {**asdict(arm), "per_seed": [{k: v for k, v in part.items() if k != "per_user"} for part in parts]}
    for metric in parts[0]["per_user"]:
        gain = {
            seed: np.subtract(mine["per_user"][metric], other["per_user"][metric])
            for seed, mine, other in zip(seeds, parts, base)
        }
        # A log's seeds judge the same users; a simulated store has others with each seed.
        out[f"{metric}_vs_{BASE}"] = over_users(gain, store == SCIENTIFIC.name, RESAMPLES, 0)
    return out


def _settings(store: Store) -> dict[str, Any]:
    """The store's settings, without paths of the machine."""
    told = asdict(store)
    told["data"]["path"] = "DATA" if store.data.path else ""
    told["encoder"] = "/".join(Path(store.encoder).parts[-2:])
    del told["cache"]
    return told


def _line(figures: dict[str, Any]) -> str:
    return (
        f"NDCG@10 {figures['ndcg@10']:.4f}, {figures['colliding_items']} items in collision, "
        f"fitted in {figures['fit_cpu_s']:.1f} s"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", default="", help="folder with the raw files of Industrial & Scientific")
    parser.add_argument("--encoder", default="", help="directory of a local text encoder, for arms that need one")
    parser.add_argument("--parts", type=Path, help="folder in which finished parts are kept")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes side by side")


if __name__ == "__main__":
    main("semantic_ids", __doc__ or "", measure, seeds=(0, 1, 2), packages=("scikit-learn",), add_options=add_options)
