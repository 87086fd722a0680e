"""Which settings of each baseline are tried, and what others report for it on Amazon Beauty.

Every system gets the same number of trials, chosen by validation NDCG@10 with the first seed. The first trial has the
regularisation of sparse data, so that one trial alone is a fair one; others are for dense data, wider or regularised
more. Where trials are not as published: ``tiger`` has networks up to the size of our policy, half of the published one;
``gru4rec`` and ``caser`` learn from all items, ``bert4rec`` with a constant 1e-3 where the paper has 1e-4 falling to 0,
weight decay 0.01 and gradients cut to 5. Left out: the trainings (``baselines_table``).
"""

from typing import Any

Settings = dict[str, Any]

NARROW: Settings = {
    "hidden_size": 128, "intermediate_size": 384, "layers": 3, "heads": 4, "kv_heads": 2, "dropout": 0.2,
}  # fmt: skip
WIDE: Settings = {
    "hidden_size": 256, "intermediate_size": 1024, "layers": 2, "dropout": 0.2, "merge_items": True,
}  # fmt: skip
SFT: Settings = {
    "packed": True, "lr": 1e-3, "weight_decay": 0.1, "warmup_steps": 200, "patience": 10, "eval_users": 1000,
    "checkpoint_every": 370,
}  # fmt: skip
"""What our policy is made of, and how it is trained: NARROW has 0.7 and WIDE 2.5 million parameters on 4 x 256 codes.
Its learning rate falls to 0 over a fixed number of epochs; the others' stays or falls slowly, and they may have 200."""

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
        {"dropout": 0.5, "lr": 3e-3},
        {"dropout": 0.2},
        {"dropout": 0.5, "width": 128, "hidden": 128},
        {"dropout": 0.5, "width": 128, "hidden": 128, "weight_decay": 0.1},
    ),
    "sasrec": (
        {"dropout": 0.5},
        {"dropout": 0.2},
        {"dropout": 0.5, "width": 128},
        {"dropout": 0.5, "width": 128, "weight_decay": 0.1},
    ),
    "sasrec_sampled": (
        {"dropout": 0.5},
        {"dropout": 0.2},
        {"dropout": 0.5, "width": 128},
        {"dropout": 0.5, "width": 128, "weight_decay": 0.1},
    ),
    "hstu": (
        {"dropout": 0.5},
        {"dropout": 0.2},
        {"dropout": 0.5, "width": 128, "head_width": 32},
        {"dropout": 0.5, "width": 128, "head_width": 32, "layers": 2},
    ),
    "tiger": (  # 0.6, 0.6, 1.1 and 2.3 million parameters on 4 x 256 codes
        {"dropout": 0.1},
        {"dropout": 0.2},
        {"dropout": 0.2, "width": 128, "head_width": 32, "inner": 512},
        {"dropout": 0.2, "width": 192, "head_width": 48, "inner": 768},
    ),
    "caser": (
        {"dropout": 0.5},
        {"dropout": 0.2},
        {"dropout": 0.5, "width": 128},
        {"dropout": 0.5, "width": 128, "length": 10},
    ),
    "bert4rec": (
        {"mask": 0.6},
        {"mask": 0.2},
        {"mask": 0.2, "width": 128},
        {"mask": 0.2, "width": 128, "dropout": 0.5},
    ),
    "sid_policy": (
        {"policy": NARROW, "sft": SFT | {"epochs": 20, "batch": 32}},
        {"policy": WIDE, "sft": SFT | {"epochs": 12, "batch": 64}},
        {"policy": NARROW | {"merge_items": True}, "sft": SFT | {"epochs": 20, "batch": 32}},
        {"policy": WIDE | {"dropout": 0.3}, "sft": SFT | {"epochs": 20, "batch": 64}},
    ),
}
"""Name -> settings that are tried, beside the defaults of the baseline; ``sid_policy`` is ours."""

FIXED: dict[str, Settings] = {
    "bert4rec": {"patience": 20},  # a cloze task gains slowly and for long
    "tiger": {"epochs": 40},  # an epoch takes ten times as long as the others'
}
"""What is set in all trials of a baseline. Passes are in float32: in bfloat16
they validate alike, and take 0.6 of the time with 12,000 items on processors that have it, many times as long on
others."""

QUICK: dict[str, Settings] = {
    name: {"epochs": 1, "eval_users": 40, "history": 10, "batch": 64}
    for name in TRIALS if name not in ("popularity", "cooccurrence", "item_knn", "sid_policy")
} | {
    "sid_policy": {
        "policy": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "kv_heads": 1},
        "sft": {"epochs": 1, "eval_users": 40},
    }
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
"""Source -> baseline -> R@5, R@10, N@5, N@10 on Beauty. SASRec's rows are taken to be of its sampled loss; of the
second source that is known, the first does not say."""

LEAVE_OUT: dict[str, tuple[str, ...]] = {
    "TIGER, table 1": ("gru4rec", "sasrec_sampled", "caser", "bert4rec"),
}
"""Source -> rows that are known to leave items of the history out of the lists: those are taken over from S3-Rec's."""

DIFFERS: dict[str, str] = {
    "gru4rec": "cross-entropy over all items; the published rows have ranking losses against sampled items",
    "sasrec": "cross-entropy over all items; the published rows are of sasrec_sampled's loss",
    "sasrec_sampled": "negatives are drawn from all items, those of the history included",
    "hstu": "cross-entropy over all items for 512 sampled ones; no timestamps, so no bias by time",
    "tiger": (
        "at most half of the published parameters and far fewer steps; no token of the user; SIDs of another "
        "tokeniser; a softmax over the codes of a level, beams held to existing items; AdamW for Adafactor"
    ),
    "caser": "cross-entropy over all items; no vector of the user; one target for three",
    "bert4rec": (
        "norms before the blocks and one behind the last for norms behind each; a constant learning rate; in a tenth "
        "of the sequences the last item alone is hidden; new masks in every epoch"
    ),
}
"""How a baseline differs from what was published."""
