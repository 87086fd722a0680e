"""A policy that goes on after items or codes were added to its catalogue.

New items on codes that exist change nothing but the trie. A new code gets a row in the input embeddings and, where they
are not tied, in the output layer: the mean of the rows of its own level plus a tenth of their standard deviation of
seeded noise, so that it starts as a code like its siblings, apart from the other new ones. Every other number keeps its
bits, so log-probabilities under a trie restricted to the old items stay what they were.

Left out: the optimiser. Its state counts steps for whole tensors, which rows that were never trained do not share, so
training goes on from these weights with a fresh optimiser, and ``sidgym.json`` says so; a run's own checkpoints of the
old catalogue are refused. New levels: another depth is another policy.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sidgym.agents.checkpoint import load_policy, read_info, save_policy
from sidgym.agents.policy import Policy
from sidgym.agents.tokens import add_sid_tokens, start_rows, token_map
from sidgym.sid.extension import check_extends
from sidgym.sid.table import SidTable


def grow_policy(policy: Policy, table: SidTable, seed: int = 0) -> Policy:
    """The same policy over an extended ``table``; the one given is left as it is.

    ``table`` holds the policy's items first, with their SIDs (``SidTable.extend``); ``seed`` draws the new rows. Raises
    ``ValueError`` for any other table.
    """
    check_extends(policy.table, table)
    model: Any = copy.deepcopy(policy.model)
    tokenizer = copy.deepcopy(policy.tokenizer)
    known = set(tokenizer.get_vocab().values())
    add_sid_tokens(tokenizer, table)
    fresh = []  # by level: places of the known codes, and of the new ones
    for level, ids in enumerate(token_map(tokenizer, table).levels):
        new = torch.tensor([token for token in ids.tolist() if token not in known], dtype=torch.long)
        fresh.append((policy.level_ids(level).cpu(), new))
    highest = max([int(new.max()) for _, new in fresh if len(new)], default=-1)
    if highest >= model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):  # rows are drawn below; the process's own stream is not touched
            torch.manual_seed(seed)
            model.resize_token_embeddings(highest + 1, mean_resizing=False)
    start_rows(model, fresh, seed)
    grown = Policy(model, tokenizer, table)
    grown.use_template(policy.template)
    return grown.train(policy.training)


def grow_checkpoint(
    source: Path | str,
    table: SidTable,
    target: Path | str,
    seed: int = 0,
    info: dict[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> Policy:
    """Writes the checkpoint ``source``, grown to ``table``, into ``target``; the policy.

    ``sidgym.json`` keeps what it said and gets the entry ``grown``: from which catalogue, how many items and codes are
    new, the seed, and that the optimiser starts anew; ``info`` is added. ``beside`` is what ``save_policy`` takes.
    Raises what ``load_policy`` and ``grow_policy`` do.
    """
    old = load_policy(source)
    policy = grow_policy(old, table, seed)
    kept = {
        key: value for key, value in read_info(source).items() if key not in ("schema_version", "sid_hash", "trie_hash")
    }
    grown = {
        "from": str(source),
        "from_sid_hash": old.table.content_hash(),
        "new_items": table.num_items - old.table.num_items,
        "new_codes": sum(table.sizes) - sum(old.table.sizes),
        "seed": seed,
        "optimizer": "fresh",
    }
    save_policy(target, policy, {**kept, "grown": [*kept.get("grown", []), grown], **(info or {})}, beside)
    return policy
