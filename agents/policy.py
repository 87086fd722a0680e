"""The policy: any Hugging Face causal language model, read as a distribution over the SIDs of a trie.

Two normalisations exist (``trie``: softmax over the children of the current node, the policy of record; ``vocab``:
softmax over the whole vocabulary, where mass leaks to tokens that are not allowed). Left out: drawing candidates
(``engine``), losses (``objectives``) and files (``checkpoint``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from sidgym.agents.config import PolicyConfig
from sidgym.agents.merger import add_merger, check_path, embedded, load_merger, merger_of
from sidgym.agents.tokens import add_sid_tokens, fresh_tokenizer, resize_embeddings, text_tokenizer, token_map
from sidgym.sid.table import SidTable
from sidgym.sid.trie import Trie

NEGATIVE_INFINITY = float("-inf")


class Policy(nn.Module):
    """A causal LM with the SID tokens of one catalogue.

    ``table`` and ``trie`` say which SIDs exist; ``template`` (``use_template``) is how histories are asked about. The
    architecture must read a 4-D attention mask and compute its logits as ``hidden @ output_embeddings``; one that does
    not is refused by name when the policy is built.
    """

    item_ids: torch.Tensor  # (N, L) token ids of each item's codes, where prompts hold merged items

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: SidTable):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.table = table
        self.trie = table.trie
        self.tokens = token_map(tokenizer, table)
        for level, ids in enumerate(self.tokens.levels):
            self.register_buffer(f"level_ids_{level}", ids, persistent=False)
        if merger_of(model) is not None:
            self.tokens = replace(self.tokens, merged=True)
            self.register_buffer("item_ids", torch.from_numpy(self.tokens.item_tokens), persistent=False)
        self.recomputes = False
        self.template = "plain"
        self._check_architecture()

    def use_template(self, name: str) -> None:
        """From now on prompts have the markup of template ``name`` (``templates``). ``ValueError`` for one that this
        tokenizer does not have."""
        from sidgym.agents.templates import prompt_markup

        before, after = prompt_markup(self.tokenizer, name)
        self.tokens, self.template = replace(self.tokens, before=before, after=after), name

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def levels(self) -> int:
        return len(self.tokens.levels)

    @property
    def merges(self) -> bool:
        """Whether prompts hold merged items (``merger``)."""
        return self.tokens.merged

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings (..., H) of tokens, and of merged items, ``ids`` (...)."""
        table = self.model.get_input_embeddings()
        return embedded(table, merger_of(self.model), self.item_ids, ids) if self.merges else table(ids)

    def reading(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """``ids`` (B, S) as the model takes them: as they are where all of them are tokens for sure."""
        return {"inputs_embeds": self.embed(ids)} if self.merges else {"input_ids": ids}

    @property
    def head_size(self) -> int:
        """Numbers in the query of one attention head."""
        config = self.model.config.get_text_config()
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def level_ids(self, level: int) -> torch.Tensor:
        """Token ids (K_l,) of the codes of one level, on the policy's device."""
        return getattr(self, f"level_ids_{level}")

    def _apply(self, *args: Any, **kwargs: Any) -> "Policy":
        """What ``to`` and its like do, also to a module that holds this one: the trie goes where the model does."""
        super()._apply(*args, **kwargs)
        self.trie = self.trie.to(self.device)
        return self

    def recompute_activations(self) -> None:
        """From now on the backward pass computes a block's activations again instead of holding them.

        Raises ``ValueError`` for an architecture whose blocks transformers cannot run so.
        """
        if not self.model.supports_gradient_checkpointing:
            raise ValueError(
                f"architecture {self.model.config.model_type!r} has no gradient checkpointing; set "
                "rl.gradient_checkpointing = false"
            )
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.recomputes = True

    def hidden(self, **inputs: Any) -> torch.Tensor:
        """Last hidden states (B, S, H): the decoder without its output layer."""
        with self._recomputing(torch.is_grad_enabled() and inputs.get("past_key_values") is None):
            return self.model.base_model(**inputs).last_hidden_state

    @contextmanager
    def _recomputing(self, possible: bool) -> Iterator[None]:
        """transformers checkpoints blocks in training mode only, where others drop out: here blocks alone are in it."""
        blocks = []
        if self.recomputes and possible:
            blocks = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer) and not m.training]
        for block in blocks:
            block.training = True
        try:
            yield
        finally:
            for block in blocks:
                block.training = False

    def logits(self, hidden: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Float32 logits of the given tokens (all tokens when None) for hidden states (..., H)."""
        head = self.model.get_output_embeddings()
        weight = head.weight if token_ids is None else head.weight[token_ids]
        return self._logits_of(hidden, weight, token_ids)

    def _logits_of(self, hidden: torch.Tensor, weight: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            # The rounding of a logit is multiplied into every ratio: this one product stays in float32.
            with torch.autocast(device, enabled=False):
                return self._logits_of(hidden.float(), weight.float(), token_ids)
        out = (hidden @ weight.T).float()
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        if bias is not None:
            out = out + (bias if token_ids is None else bias[token_ids]).float()
        return out

    def level_weights(self) -> tuple[torch.Tensor, ...]:
        """Output embeddings (K_l, H) of the codes of every level, read at once.

        Each reading from the table costs a gradient as large as the table, which a large vocabulary makes felt.
        """
        ids = [self.level_ids(level) for level in range(self.levels)]
        read = nn.functional.embedding(torch.cat(ids), self.model.get_output_embeddings().weight)
        return read.split([len(level) for level in ids])

    def level_logp(
        self,
        hidden: torch.Tensor,
        nodes: torch.Tensor,
        level: int,
        normalise: str = "trie",
        trie: Trie | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probabilities (..., K_l) of the codes below ``nodes`` (...), -inf where the trie has no child.

        ``normalise="trie"`` sums to one over the children; ``"vocab"`` keeps the mass that the whole softmax gives.
        ``trie`` replaces the policy's own trie, for example by a restricted view of it; ``weights`` are the level's of
        ``level_weights``, where the caller has them.
        """
        ids = self.level_ids(level)
        logits = self.logits(hidden, ids) if weights is None else self._logits_of(hidden, weights, ids)
        masked = (self.trie if trie is None else trie).masked(logits, nodes, level)
        if normalise == "vocab":
            return masked - self.logits(hidden).logsumexp(-1, keepdim=True)
        if normalise != "trie":
            raise ValueError(f"unknown normalise {normalise!r}; known: trie, vocab")
        # A dead beam has no child at all: its row stays -inf instead of turning into NaN.
        total = masked.logsumexp(-1, keepdim=True)
        return masked - total.masked_fill(total == NEGATIVE_INFINITY, 0.0)

    @torch.no_grad()
    def _check_architecture(self) -> None:
        """Refuses by ``ValueError`` a model that cannot read a tree of candidates.

        It must look at all of a prompt, and two tokens behind one prompt that do not see each other must give the
        logits that the model gives for each alone.
        """
        kind, config = self.model.config.model_type, self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else []))
        if kinds - {"full_attention", "sliding_attention"} or (
            "sliding_attention" in kinds and (window or 0) < config.max_position_embeddings
        ):
            raise ValueError(
                f"architecture {kind!r} is not supported: a tree of candidates needs attention to the whole prompt in "
                f"every layer, its layers are {', '.join(sorted(kinds))} (window {window})"
            )
        was_training = self.model.training
        self.model.eval()
        first = torch.stack([self.level_ids(level)[0] for level in range(self.levels)])
        other = self.level_ids(self.levels - 1)[-1:]
        ids = torch.cat([first, other])[None].to(self.device)
        length = ids.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        visible[-1, -2] = False
        places = torch.arange(length, device=self.device)[None].clamp_max(length - 2)
        own = self.logits(
            self.hidden(
                input_ids=ids,
                attention_mask=additive_mask(visible[None], self.model),
                position_ids=places,
                use_cache=False,
            )
        )[0]
        alone = torch.cat([ids[:, :-1], torch.cat([ids[:, :-2], ids[:, -1:]], dim=1)])
        theirs = self.model(input_ids=alone, use_cache=False).logits.float()
        theirs = torch.cat([theirs[0], theirs[1, -1:]])
        self.model.train(was_training)
        scale = max(1.0, float(theirs.abs().max()))
        if own.shape != theirs.shape or not float((own - theirs).abs().max()) <= 1e-3 * scale:
            raise ValueError(
                f"architecture {kind!r} is not supported: its logits are not hidden states times output embeddings, or "
                "it does not read a 4-D attention mask"
            )


def additive_mask(visible: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Boolean (B, Q, S) 'query may see key' as the additive 4-D mask (B, 1, Q, S) that transformers takes."""
    dtype = next(model.parameters()).dtype
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, lowest)[:, None]


def build_policy(config: PolicyConfig, table: SidTable, seed: int, texts: Sequence[str] = ()) -> Policy:
    """A policy over ``table`` from a local checkpoint (``config.path``) or with random weights drawn from ``seed``.

    A model without a checkpoint knows SIDs alone, or with ``texts`` also ``config.text_vocabulary`` tokens that are
    learned from them. Raises ``ValueError`` for an unknown architecture and ``FileNotFoundError`` for a path that is no
    model directory.
    """
    if config.path:
        if not (Path(config.path) / "config.json").is_file():
            raise FileNotFoundError(f"policy.path {config.path!r} is no Hugging Face model directory (no config.json)")
        tokenizer = AutoTokenizer.from_pretrained(config.path, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(config.path, local_files_only=True, dtype=torch.float32)
    else:
        tokenizer = text_tokenizer(texts, config.text_vocabulary) if texts else fresh_tokenizer()
    known = len(tokenizer)
    add_sid_tokens(tokenizer, table)
    trained = bool(config.path) and check_path(config.path, config.merge_items)
    if config.path:
        resize_embeddings(model, known, len(tokenizer), seed)
    else:
        model = _fresh_model(config, len(tokenizer), tokenizer, seed)
    model.generation_config = clean_generation_config(model, tokenizer)
    if trained:
        load_merger(model, table.codes.shape[1], Path(config.path))
    elif config.merge_items:
        add_merger(model, table.codes.shape[1])
    return Policy(model, tokenizer, table)


def _fresh_model(config: PolicyConfig, vocabulary: int, tokenizer: Any, seed: int) -> PreTrainedModel:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.hidden_size // config.heads,
        "attention_dropout": config.dropout,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if config.architecture == "gpt2":  # its own names, and defaults that would hold in silence
        shape |= {"n_inner": config.intermediate_size}
        shape |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    try:
        model_config = AutoConfig.for_model(config.architecture, **shape)
    except ValueError as error:
        raise ValueError(
            f"policy.architecture {config.architecture!r} is no model_type of transformers; known for example: "
            "qwen3, qwen2, llama, gpt2"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config)


def clean_generation_config(model: PreTrainedModel, tokenizer: Any) -> Any:
    """A generation config with token ids only: an instruct model's temperature or top-p must not reach a rollout."""
    from transformers import GenerationConfig

    return GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
    )


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Positions (B, P) that count the visible tokens of a prompt, padded on either side, from 0."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


class Contexts(Protocol):
    """What has to be known of contexts to ask about them: ``Episodes``, ``GroupBatch``, ``Questions``."""

    @property
    def history(self) -> np.ndarray: ...  # (B, T) items, PAD_ITEM on the left

    @property
    def prompt(self) -> np.ndarray | None: ...  # (B, Q) token ids, PAD_ITEM on the left; a row of those alone: history


@dataclass(frozen=True)
class Questions:
    """The plainest contexts: histories (B, T), and questions in words (B, Q) where there are any."""

    history: np.ndarray
    prompt: np.ndarray | None = None


def prompt_arrays(policy: Policy, contexts: Contexts | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask (B, P), padded on the left, of contexts or of bare item histories (B, T).

    A context is asked in the tokens of its ``prompt``; one without them by its history, in the policy's template.
    """
    if isinstance(contexts, np.ndarray):
        return policy.tokens.prompts(contexts)
    given = contexts.prompt
    if given is None or not given.shape[1]:
        return policy.tokens.prompts(contexts.history)
    worded = np.any(given >= 0, axis=1, keepdims=True)
    ids, mask = policy.tokens.prompts(np.where(worded, -1, contexts.history))
    mask &= ~worded
    both, seen = np.concatenate([given, ids], axis=1), np.concatenate([given >= 0, mask], axis=1)
    # One of the two halves is empty: moving what is seen to the right keeps its order and loses no token.
    order = np.argsort(seen, axis=1, kind="stable")[:, -max(int(seen.sum(axis=1).max()), 1) :]
    seen = np.take_along_axis(seen, order, axis=1)
    return np.where(seen, np.take_along_axis(both, order, axis=1), policy.tokens.pad), seen


def prompt_tensors(policy: Policy, contexts: Contexts | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """``prompt_arrays`` on the policy's device."""
    ids, mask = prompt_arrays(policy, contexts)
    return torch.from_numpy(ids).to(policy.device), torch.from_numpy(mask).to(policy.device)


def causal_visibility(mask: torch.Tensor) -> torch.Tensor:
    """Boolean (B, P, P) for prompts with mask (B, P): causal, padding unseen except by itself: no empty row."""
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    eye = torch.eye(length, dtype=torch.bool, device=mask.device)
    return (causal & mask[:, None, :]) | eye


def position_limit(model: PreTrainedModel) -> int | None:
    """Tokens that ``model`` reads at most; None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def parameter_count(model: nn.Module) -> int:
    """Number of distinct parameters (tied weights once)."""
    return sum(parameter.numel() for parameter in model.parameters())
