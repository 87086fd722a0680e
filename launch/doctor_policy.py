"""What ``sidgym doctor`` checks in a policy's folder: tokens, hashes, weights, generation settings.

Nothing is run and the weights are not loaded, except for the rows of the SID tokens and the item merger. Left out:
everything around the folder (``doctor``).

Symbols: V rows of the embedding table.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from sidgym.agents.checkpoint import CheckpointError, read_info
from sidgym.agents.merger import FILE
from sidgym.agents.tokens import HISTORY_TOKEN
from sidgym.launch.findings import Finding, bad, counted, fine
from sidgym.sid.extension import check_extends
from sidgym.sid.table import SidTable

WHOLE_SIDS = 2_000
"""Items whose whole SIDs are put through the tokenizer as text."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1.0,),
    "top_k": (0, -1),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "guidance_scale": (1.0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
}
"""Generation settings that change scores or cut candidates, and the values, besides none, with which they do not."""

HARM = {
    "do_sample": "draws at random where the best beams are meant",
    "temperature": "scales the scores",
    "top_k": "cuts away codes beyond the k most probable",
    "top_p": "cuts away codes beyond the mass p",
    "min_p": "cuts away improbable codes",
    "repetition_penalty": "punishes the codes that stand in the history",
    "no_repeat_ngram_size": "forbids SIDs that stand in the history",
    "penalty_alpha": "searches contrastively, which punishes codes that resemble the history's",
    "exponential_decay_length_penalty": "raises the score of an end token with the length",
    "watermarking_config": "raises the scores of tokens picked by a hash",
    "suppress_tokens": "forbids tokens",
    "bad_words_ids": "forbids tokens",
}
"""What the common ones do to a beam over SIDs."""


def check_policy(folder: Path, run_table: SidTable | None) -> Iterator[Finding]:
    """Every finding on a checkpoint; ``run_table`` is the table of the run that it lies in, if there is one."""
    for finding in _check_policy(folder, run_table):
        yield finding.at(folder.name)


def _check_policy(folder: Path, run_table: SidTable | None) -> Iterator[Finding]:
    again = "train it again, or restore the folder from a copy"
    try:
        record = read_info(folder)
        table = SidTable.load(folder / "sid")
    except (CheckpointError, OSError, ValueError) as error:
        yield bad("checkpoint", str(error), "what its tokens stand for cannot be known", again)
        return
    yield from _check_hashes(record, table, run_table)
    tokenizer = _tokenizer(folder)
    if isinstance(tokenizer, Finding):
        yield tokenizer
        return
    yield from check_tokens(tokenizer, table)
    yield from check_weights(folder, tokenizer, table)
    yield from check_merger(folder, bool(record.get("merge_items", False)), table)
    yield from check_generation(folder, tokenizer, table)


def is_grown(folder: Path) -> bool:
    """Whether a checkpoint says that items were added to it, by a command and not by a stage."""
    try:
        return bool(read_info(folder).get("grown"))
    except CheckpointError:
        return False


def _check_hashes(record: dict[str, Any], table: SidTable, run_table: SidTable | None) -> Iterator[Finding]:
    own, wrong = table.content_hash(), False
    for name, found in (("sid_hash", own), ("trie_hash", table.trie.content_hash())):
        if record.get(name) != found:
            wrong = True
            what = f"{name} of sidgym.json is {str(record.get(name))[:12]}, the table in sid/ gives {found[:12]}"
            why = "the weights were trained on other codes, so SIDs would be decoded to the wrong items"
            yield bad("hashes", what, why, "put back the table that the policy was saved with, or train again")
    if run_table is not None and run_table.content_hash() != own:
        try:
            check_extends(run_table, table)
            yield fine(
                "hashes", f"the table is the run's with {counted(table.num_items - run_table.num_items, 'item')} added"
            )
        except ValueError as error:
            wrong = True
            yield bad(
                "hashes",
                f"its table ({own[:12]}) is not the run's ({run_table.content_hash()[:12]}): {error}",
                "contexts of the run hold items that the policy calls by other codes",
                "train it again on the run's table, or use the data that belongs to it",
            )
    if not wrong:
        yield fine("hashes", f"table, trie and checkpoint agree ({own[:12]})")


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, or the finding that says why there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each kind of tokenizer fails in a way of its own
        first = str(error).strip().partition("\n")[0]
        return bad("tokenizer", f"it cannot be loaded ({first})", "no prompt can be written", "restore its files")


def check_tokens(tokenizer: Any, table: SidTable) -> Iterator[Finding]:
    """Every code of the table must be one indivisible token with an id of its own, alone and inside a SID."""
    names = [HISTORY_TOKEN, *(name for level in table.tokens() for name in level)]
    vocabulary = tokenizer.get_vocab()
    todo = "add them with sidgym.agents.tokens.add_sid_tokens, and train: a token that is split has no row of its own"
    missing = [name for name in names if name not in vocabulary]
    if missing:
        yield bad(
            "tokens",
            f"the tokenizer lacks {len(missing):,} of {len(names):,} SID tokens ({_first(missing)})",
            "these items can neither be read from a history nor be recommended",
            todo,
        )
    present = [name for name in names if name in vocabulary]
    pieces = tokenizer(present, add_special_tokens=False)["input_ids"] if present else []
    split = [name for name, ids in zip(present, pieces) if list(ids) != [vocabulary[name]]]
    if split:
        yield bad(
            "tokens",
            f"{len(split):,} SID tokens are split or changed by the tokenizer ({_first(split)})",
            "codes and tokens are then no longer one to one, and the trie masks the wrong ids",
            todo,
        )
    if len({vocabulary[name] for name in present}) < len(present):
        yield bad("tokens", "several SID tokens have one id", "their codes cannot be told apart", todo)
    if missing or split:
        return
    tokens, some = table.tokens(), table.codes[:WHOLE_SIDS]
    texts = ["".join(tokens[level][code] for level, code in enumerate(row)) for row in some.tolist()]
    ids_of = [np.array([vocabulary[name] for name in level]) for level in tokens]
    expected = np.stack([ids[some[:, level]] for level, ids in enumerate(ids_of)], axis=1).tolist()
    read = tokenizer(texts, add_special_tokens=False)["input_ids"]
    wrong = [text for text, ids, row in zip(texts, read, expected) if list(ids) != row]
    if wrong:
        what = f"{len(wrong):,} of {len(texts):,} SIDs, written as text, are not read as their codes ({_first(wrong)})"
        yield bad("tokens", what, "prompts that are written as text do not say what the codes say", todo)
    else:
        yield fine("tokens", f"{len(names):,} SID tokens, each one indivisible")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        yield bad(
            "tokens", "the tokenizer has neither a pad nor an eos token", "prompts cannot be padded", "set one of them"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def check_weights(folder: Path, tokenizer: Any, table: SidTable) -> Iterator[Finding]:
    """The embedding table must have a finite row, not all zero, for every SID token."""
    vocabulary = tokenizer.get_vocab()
    ids = np.array([vocabulary[name] for level in table.tokens() for name in level if name in vocabulary])
    again = "restore the folder from a copy, or train again"
    try:
        rows, read = embedding_rows(folder)
    except Exception as error:  # a damaged config, an unknown architecture, files cut off
        first = str(error).strip().partition("\n")[0]
        yield bad(
            "weights", f"they cannot be read ({type(error).__name__}: {first})", "the policy cannot be loaded", again
        )
        return
    if len(ids) and ids.max() >= rows:
        yield bad(
            "weights",
            f"the tokenizer gives ids up to {ids.max():,}, the embedding table has {rows:,} rows",
            "a prompt with such a token fails, or reads another row",
            "resize the embeddings to the tokenizer, and train",
        )
        return
    if not len(ids):
        return
    weight = read(int(ids.min()), int(ids.max()) + 1)[torch.from_numpy(ids - ids.min())].float()
    broken = int((~torch.isfinite(weight).all(dim=1)).sum())
    empty = int((weight == 0).all(dim=1).sum())
    if broken or empty:
        what = f"of {len(ids):,} SID tokens {broken:,} have embeddings that are not finite, {empty:,} all zero"
        yield bad("weights", what, "their scores mean nothing, and NaN spreads to all others", again)
    else:
        yield fine("weights", f"{rows:,} embedding rows, a finite one for each of {len(ids):,} SID tokens")


def check_merger(folder: Path, merges: bool, table: SidTable) -> Iterator[Finding]:
    """Where a policy reads items merged: its merger must be there, whole and finite. Where not: there must be none."""
    path, again = folder / FILE, "restore the folder from a copy, or train again"
    if not path.is_file():
        if merges:
            yield bad("item merger", f"{FILE} is missing", "its policy reads items merged, and cannot be loaded", again)
        return
    if not merges:
        why = "the policy is loaded without it; as policy.path of another run it would be read merged"
        yield bad("item merger", f"{FILE} is there, and sidgym.json says nothing of it", why, "remove it, or " + again)
        return
    try:
        stored = load_file(path)
        width = embedding_rows(folder)[1](0, 1).shape[1]
    except Exception as error:  # as for the weights
        first = str(error).strip().partition("\n")[0]
        what = f"it cannot be read ({type(error).__name__}: {first})"
        yield bad("item merger", what, "the policy cannot be loaded", again)
        return
    expected = {"weight": (width, table.codes.shape[1] * width), "bias": (width,)}
    found = {name: tuple(value.shape) for name, value in stored.items()}
    broken = [name for name, value in stored.items() if not torch.isfinite(value).all()]
    if found != expected:
        what = f"expected {expected} for this model and table, found {found}"
        yield bad("item merger", what, "the policy cannot be loaded", again)
    elif broken:
        what = f"{' and '.join(sorted(broken))} of {FILE} not finite"
        yield bad("item merger", what, "every prompt is read as NaN", again)
    else:
        yield fine("item merger", f"finite, of {table.codes.shape[1]} codes an item")


def embedding_rows(folder: Path) -> tuple[int, Any]:
    """V, and a function that reads rows ``[begin, end)`` of the input embeddings, without loading the model."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    weight = shell.get_input_embeddings().weight
    name = next(name for name, parameter in shell.named_parameters() if parameter is weight)
    index = folder / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    path = folder / files.get(name, "model.safetensors")

    def read(begin: int, end: int) -> torch.Tensor:
        with safe_open(path, framework="pt") as stored:
            return stored.get_slice(name)[begin:end]

    with safe_open(path, framework="pt") as stored:
        return int(stored.get_slice(name).get_shape()[0]), read


def check_model(folder: Path) -> Iterator[Finding]:
    """A model directory without SIDs, such as one that a policy is made of: its tokenizer and generation settings."""
    tokenizer = _tokenizer(folder)
    if isinstance(tokenizer, Finding):
        yield tokenizer.at(folder.name)
        return
    yield Finding("ok", f"{folder.name} model", "no sidgym checkpoint: it has no SID tokens or table to check")
    for finding in check_generation(folder, tokenizer, None):
        yield finding.at(folder.name)


def check_generation(folder: Path, tokenizer: Any, table: SidTable | None) -> Iterator[Finding]:
    """``generation_config.json``: an instruct model's sampling settings would corrupt a beam over SIDs."""
    path = folder / "generation_config.json"
    if not path.is_file():
        yield fine("generation settings", "none are stored, so none can reach a beam")
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"expected an object, got {type(settings).__name__}")
    except ValueError as error:
        yield bad(
            "generation settings",
            f"{path} is not valid JSON ({error})",
            "generate cannot be called",
            "write it again or remove it",
        )
        return
    harmful = corrupting(settings)
    if harmful:
        listed = ", ".join(f"{name} {value!r}" for name, value in harmful.items())
        does = "; ".join(f"{name} {HARM[name]}" for name in harmful if name in HARM)
        why = f"transformers' generate and vLLM take them as defaults{f': {does}' if does else ''}"
        todo = "remove them: keep only the ids of pad, bos and eos, as sidgym's own checkpoints do"
        yield bad("generation settings", f"generation_config.json sets {listed}", why, todo)
    wrong = _end_tokens(settings.get("eos_token_id"), tokenizer, table)
    yield from wrong
    if not harmful and not wrong:
        yield fine("generation settings", "nothing in them changes a beam's scores")


def _end_tokens(given: Any, tokenizer: Any, table: SidTable | None) -> list[Finding]:
    """What is wrong with ``eos_token_id``, one id or a list of them."""
    ends = given if isinstance(given, list) else [] if given is None else [given]
    todo = "set it to the id of the tokenizer's own end token"
    numbers = [end for end in ends if isinstance(end, int) and not isinstance(end, bool) and end >= 0]
    out = []
    if len(numbers) < len(ends):
        what = f"eos_token_id is {given!r}, expected token ids: integers from 0 on"
        out.append(bad("generation settings", what, "generate fails, or never ends where it should", todo))
    vocabulary = tokenizer.get_vocab()
    names = [name for level in table.tokens() for name in level] if table is not None else []
    inside = [name for name in names if vocabulary.get(name, -1) in numbers]
    if inside:
        what = f"eos_token_id is a SID token ({_first(inside)})"
        out.append(bad("generation settings", what, "a beam ends inside a SID", todo))
    return out


def corrupting(settings: dict[str, Any]) -> dict[str, Any]:
    """Of generation settings those that change scores or cut candidates."""
    return {
        name: settings[name]
        for name, neutral in NEUTRAL.items()
        if settings.get(name) is not None and settings[name] not in neutral
    }
