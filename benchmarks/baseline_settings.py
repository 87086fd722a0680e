"""Which settings of each baseline are tried, and what others report for it on Amazon Beauty.

Every baseline gets the same number of trials, chosen by validation NDCG@10 with the first seed. The first trials are
the published settings, for dense and for sparse data where a paper has two; the others are wider or regularised more.
Left out: the trainings (``baselines_table``).
"""

from typing import Any

Settings = dict[str, Any]

TRIALS: dict[str, tuple[Settings, ...]] = {
    "popularity": ({},),
    "cooccurrence": ({"window": 1}, {"window": 2}, {"window": 3}, {"window": 5}),
    "item_knn": (
        {"neighbours": 100, "shrink": 10.0},
        {"neighbours": 100, "shrink": 10.0, "decay": 0.8},
        {"neighbours": 1000, "shrink": 10.0, "decay": 0.8},
        {"neighbours": 1000, "shrink": 1.0, "decay": 0.6},
    ),
    "gru4rec": (
        {"dropout": 0.2},
        {"dropout": 0.5, "lr": 3e-3},
        {"dropout": 0.5, "width": 128, "hidden": 128},
        {"dropout": 0.5, "width": 128, "hidden": 128, "weight_decay": 0.1},
    ),
    "sasrec": (
        {"dropout": 0.2},
        {"dropout": 0.5},
        {"dropout": 0.5, "width": 128},
        {"dropout": 0.5, "width": 128, "weight_decay": 0.1},
    ),
    "sasrec_sampled": (
        {"dropout": 0.2},
        {"dropout": 0.5},
        {"dropout": 0.5, "width": 128},
        {"dropout": 0.5, "width": 128, "weight_decay": 0.1},
    ),
    "hstu": (
        {"dropout": 0.2},
        {"dropout": 0.5},
        {"dropout": 0.5, "width": 128, "head_width": 32},
        {"dropout": 0.5, "width": 128, "head_width": 32, "layers": 2},
    ),
    "tiger": (
        {"dropout": 0.1},
        {"dropout": 0.2},
        {"dropout": 0.2, "weight_decay": 0.1},
        {"dropout": 0.2, "width": 128, "head_width": 32, "inner": 512},
    ),
    "caser": (
        {"dropout": 0.2},
        {"dropout": 0.5},
        {"dropout": 0.5, "width": 128},
        {"dropout": 0.5, "width": 128, "length": 10},
    ),
    "bert4rec": (
        {"mask": 0.6},
        {"mask": 0.2},
        {"mask": 0.2, "width": 128},
        {"mask": 0.2, "width": 128, "dropout": 0.5},
    ),
}
"""Name -> settings that are tried, beside the defaults of the baseline."""

FIXED: dict[str, Settings] = {
    "bert4rec": {"patience": 20, "epochs": 400},  # a cloze task gains slowly and for long
    "tiger": {"precision": "bfloat16"},  # the longest by far, and on processors that have it 0.6 of the time
}
"""What is set in all trials of a baseline."""

QUICK: dict[str, Settings] = {
    name: {"epochs": 1, "eval_users": 40, "history": 10, "batch": 64}
    for name in TRIALS if name not in ("popularity", "cooccurrence", "item_knn")
}  # fmt: skip
"""Of a smoke run."""

PUBLISHED: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "OneRec-Think, table 1": {
        "gru4rec": (0.0395, 0.0584, 0.0265, 0.0326),
        "sasrec_sampled": (0.0402, 0.0607, 0.0254, 0.0320),
        "hstu": (0.0424, 0.0652, 0.0280, 0.0353),
        "tiger": (0.0405, 0.0623, 0.0267, 0.0337),
        "bert4rec": (0.0232, 0.0396, 0.0146, 0.0199),
    },
    "TIGER, table 1": {
        "gru4rec": (0.0164, 0.0283, 0.0099, 0.0137),
        "sasrec_sampled": (0.0387, 0.0605, 0.0249, 0.0318),
        "tiger": (0.0454, 0.0648, 0.0321, 0.0384),
        "caser": (0.0205, 0.0347, 0.0131, 0.0176),
        "bert4rec": (0.0203, 0.0347, 0.0124, 0.0170),
    },
}
"""Source -> baseline -> R@5, R@10, N@5, N@10 on Beauty. SASRec's rows are of its sampled loss."""

DIFFERS: dict[str, str] = {
    "gru4rec": "cross-entropy over all items; the published rows have ranking losses against sampled items",
    "sasrec": "cross-entropy over all items; the published rows are of sasrec_sampled's loss",
    "hstu": "cross-entropy over all items for 512 sampled ones; no timestamps, so no bias by time",
    "tiger": "a smaller network; no token of the user; SIDs of another tokeniser",
    "caser": "cross-entropy over all items; no vector of the user; one target for three",
    "bert4rec": "in a tenth of the sequences the last item alone is hidden; new masks in every epoch",
}
"""How a baseline differs from what was published."""
