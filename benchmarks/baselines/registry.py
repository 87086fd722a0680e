"""The baselines by name, each fitted in the same way.

    model = fit_baseline("sasrec", BaselineData(splits.sft_all, splits.valid, items), seed=0, dropout=0.2)
    items = model.rank(splits.test.history, 50)

One of your own is a function ``(data, seed, directory=None, on_epoch=None, **settings)`` and goes by
``package.module:name``. Left out: which settings are tried (``benchmarks.baselines_table``).
"""

from pathlib import Path
from typing import Any

from sidgym.benchmarks.baselines import bert4rec, caser, gru4rec, hstu, sasrec, tiger
from sidgym.benchmarks.baselines.cooccurrence import LastItemCooccurrence
from sidgym.benchmarks.baselines.item_knn import ItemKnn
from sidgym.benchmarks.baselines.popularity import Popularity
from sidgym.benchmarks.baselines.protocol import Baseline, BaselineData, Fit, OnEpoch
from sidgym.sid.registry import resolve


def fit_popularity(
    data: BaselineData, seed: int = 0, directory: Path | None = None, on_epoch: OnEpoch | None = None
) -> Popularity:
    """``Popularity`` of the training sequences."""
    return Popularity.fit(data.sequences, data.num_items)


def fit_cooccurrence(
    data: BaselineData, seed: int = 0, directory: Path | None = None, on_epoch: OnEpoch | None = None, window: int = 3
) -> LastItemCooccurrence:
    """``LastItemCooccurrence`` of the training sequences."""
    return LastItemCooccurrence.fit(data.sequences, data.num_items, window)


BASELINES: dict[str, Fit] = {
    "popularity": fit_popularity,
    "cooccurrence": fit_cooccurrence,
    "item_knn": ItemKnn.fit,
    "gru4rec": gru4rec.Gru4Rec.fit,
    "sasrec": sasrec.SasRec.fit,
    "sasrec_sampled": sasrec.fit_as_published,
    "hstu": hstu.Hstu.fit,
    "tiger": tiger.Tiger.fit,
    "caser": caser.Caser.fit,
    "bert4rec": bert4rec.Bert4Rec.fit,
}
"""Name -> ``(data, seed, directory=None, on_epoch=None, **settings) -> Baseline``."""


def fit_baseline(
    name: str, data: BaselineData, seed: int = 0, directory: Path | None = None, on_epoch: OnEpoch | None = None,
    **settings: Any,
) -> Baseline:  # fmt: skip
    """The baseline called ``name``, fitted; trained ones go on from ``directory`` where a training stands there."""
    fitted: Baseline = resolve("baseline", name, BASELINES)(data, seed, directory, on_epoch, **settings)
    return fitted
