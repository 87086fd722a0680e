"""Items read whole: in a prompt the L codes of an item become one embedding (Token Merger, GenRec eq. 5).

    h_v = W [e(s_1); ... ; e(s_L)] + b

Prompts become about L times shorter; what is decoded stays code by code. Supervised training of whole histories does
not become cheaper: each item is L codes to predict and one token to read, where it was L codes for both.

Where a policy merges, prompts hold ``FIRST_ITEM + v`` for item v, which ``embedded`` turns into ``h_v``; no table has
such a row, so whoever reads ids without it fails at once. The weights are a module of the language model: optimisers,
checkpoints of a run, learners and engines know them as they know all others. In a checkpoint's folder they have a file
of their own, and the model beside it stays what transformers wrote. W starts as identities over the square root of L: a
new merger gives what is about as large as a token. Left out: adapters of the merger; SFT trains it whole, RL with
adapters leaves it as it is.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sidgym.agents.tokens import FIRST_ITEM

MODULE = "item_merger"
"""Name of the merger in the language model, and so in its state dict."""
FILE = "item_merger.safetensors"
"""File of its weights in a checkpoint's folder."""


class ItemMerger(nn.Module):
    """Linear map of an item's L code embeddings, end to end, to one."""

    def __init__(self, levels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(1, levels) / levels**0.5)  # (H, L * H)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., H) of items from those of their codes (..., L, H), in the same number format."""
        return nn.functional.linear(codes.flatten(-2), self.weight, self.bias).to(codes.dtype)


def merger_of(model: nn.Module) -> ItemMerger | None:
    """The model's merger, None where it reads items code by code."""
    return getattr(model, MODULE, None)


def merger_names(model: nn.Module) -> list[str]:
    """Names of the merger's parameters among the model's."""
    return [name for name, _ in model.named_parameters() if name.startswith(f"{MODULE}.")]


@torch.no_grad()
def add_merger(model: Any, levels: int) -> None:
    """Gives ``model`` a new merger of ``levels`` codes.

    Raises ``ValueError`` for an architecture that does more with a token than reading its embedding: it could not read
    an embedding that belongs to no token.
    """
    table = model.get_input_embeddings()
    merger = ItemMerger(levels, table.weight.shape[1])
    ids = torch.arange(min(levels, table.weight.shape[0]), device=table.weight.device)[None]
    training = model.training
    model.eval()
    ways = ({"input_ids": ids}, {"inputs_embeds": table(ids)})
    read = [model.base_model(**inputs, use_cache=False).last_hidden_state for inputs in ways]
    model.train(training)
    scale = max(1.0, float(read[0].abs().max()))
    if not float((read[0] - read[1]).abs().max()) <= 1e-3 * scale:
        raise ValueError(
            f"policy.merge_items: architecture {model.config.model_type!r} does more with a token than reading its "
            "embedding, so items cannot be merged; set it to false"
        )
    model.add_module(MODULE, merger.to(table.weight.device))


def embedded(table: nn.Module, merger: ItemMerger | None, item_tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Embeddings (..., H) of tokens, and of merged items, ``ids`` (...).

    ``item_tokens`` (N, L) are the items' codes as tokens. The table is read once, and an item is merged once, however
    often it stands there.
    """
    if merger is None:
        return table(ids)
    flat = ids.flatten()
    whole = flat >= FIRST_ITEM
    items, which = (flat[whole] - FIRST_ITEM).unique(return_inverse=True)
    words, codes = flat[~whole], item_tokens[items]
    read = table(torch.cat([words, codes.flatten()]))
    own, parts = read.split([len(words), codes.numel()])
    both = torch.cat([own, merger(parts.unflatten(0, codes.shape))])
    place = torch.empty_like(flat)
    place[~whole], place[whole] = torch.arange(len(words), device=ids.device), len(words) + which
    return both[place].unflatten(0, ids.shape)


@contextmanager
def without_merger(model: nn.Module) -> Iterator[None]:
    """While the model is written as transformers knows it."""
    merger = model._modules.pop(MODULE, None)
    try:
        yield
    finally:
        if merger is not None:
            model.add_module(MODULE, merger)


def save_merger(model: nn.Module, directory: Path) -> None:
    """Writes the merger's weights into ``directory``; nothing where there is none."""
    merger = merger_of(model)
    if merger is not None:
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in merger.state_dict().items()}
        save_file(tensors, directory / FILE)


def load_merger(model: Any, levels: int, directory: Path) -> None:
    """Gives ``model`` the merger that ``save_merger`` wrote. ``ValueError`` for that of another model or depth."""
    add_merger(model, levels)
    merger, stored = model.get_submodule(MODULE), load_file(directory / FILE)
    own = {name: tuple(value.shape) for name, value in merger.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in stored.items()}
    if own != found:
        raise ValueError(f"{directory / FILE}: expected {own} for this model and {levels} levels, found {found}")
    merger.load_state_dict(stored)


def missing(directory: Path | str) -> str:
    """What is said of a checkpoint whose merger is not there."""
    return f"{directory}: its policy reads items merged, but {FILE} is missing; copy it, too"


def check_path(directory: str, merge_items: bool) -> bool:
    """Whether a model's folder holds a merger. ``ValueError`` where it does and items are not to be merged, and where
    the folder is a checkpoint whose merger was lost."""
    held = (Path(directory) / FILE).is_file()
    path = Path(directory) / "sidgym.json"
    if not held and path.is_file():
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); restore it from a copy, or remove it") from error
        if isinstance(record, dict) and record.get("merge_items", False):
            raise ValueError(missing(directory))
    if held and not merge_items:
        raise ValueError(
            f"policy.path {directory!r} was trained to read items merged ({FILE}): set policy.merge_items = true"
        )
    return held


def refuse_merged(model: nn.Module, engine: str) -> None:
    """Raises ``ValueError`` for a model that merges items, which ``engine`` could not be told."""
    if merger_of(model) is not None:
        raise ValueError(
            f"engine {engine!r} takes prompts as token ids and cannot read merged items (policy.merge_items = true): "
            "use rl.engine = 'torch', or train a policy with policy.merge_items = false"
        )
