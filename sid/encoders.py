"""Item embeddings from a local neural text encoder, through transformers alone.

Any directory that ``encoder_plan`` reads: sentence-transformers (mean, CLS, last-token or max pooling, dense layers,
normalisation) or Hugging Face. Texts go through it in batches of about equal length. What has been encoded is kept in
a cache by the hash of text and encoder, so that a killed run goes on where it was, and the same catalogue is encoded
once for all seeds and settings. Left out: training an encoder, code that a directory brings along, and downloading.

Symbols: M texts, B texts of a batch, T tokens, D width of the embeddings.
"""

import inspect
import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidgym.sid.embedding_files import SCHEMA_VERSION, RowCache, read_header, text_keys
from sidgym.sid.encoder_plan import EncoderPlan, encoder_hash, read_plan
from sidgym.sid.table import write_atomically

BATCH = 32
"""Texts encoded at once."""

KEEP_TEXTS, KEEP_SECONDS = 4096, 30.0
"""Rows are put into the cache after so many texts or so much time, whichever comes first."""

NO_LIMIT = 100_000
"""Tokenizers without a length of their own state one far beyond this."""


class Encoder:
    """A frozen text encoder.

    Args:
        dim: not used; the width is the encoder's own.
        seed: not used; nothing is drawn.
        source: the encoder's directory.
        cache: folder for what has been encoded; None keeps nothing.
        on_progress: called as ``(done, total, text)``.
        device: of torch; the weights are float32 on any.

    The texts are sorted by length and cut into batches; a run that was killed makes the same batches of what is left,
    so it ends with the same bits as one that was not. Between different sets of texts the last bits of a row can
    differ, because a matrix product's do with its shape.
    """

    takes = ("source", "cache", "on_progress")
    reads_texts = True

    def __init__(
        self,
        dim: int,
        seed: int,
        source: str = "",
        cache: str | Path | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
        device: str = "cpu",
    ) -> None:
        if not source:
            raise ValueError("embedder 'encoder' needs sid.encoder: the local directory of a text encoder")
        self.source, self.device, self.on_progress = source, device, on_progress
        self.plan = read_plan(source)
        self.folder = cache
        self._model: _Pooled | None = None

    @cached_property
    def hash(self) -> str:
        """Of the encoder's files; weights of many gigabytes take a while."""
        return encoder_hash(self.source)

    def fit(self, texts: Sequence[str]) -> "Encoder":
        """Nothing to learn."""
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(M, D) float32, rows of equal texts equal. ``ValueError`` for no texts, an empty one, or rows not finite."""
        empty = [row for row, text in enumerate(texts) if not text.strip()]
        if empty or len(texts) == 0:
            raise ValueError(
                f"encoder: {len(empty)} of {len(texts)} items have no text, first rows {empty[:5]}; expected at least "
                "one item, and a title for each"
            )
        keys = text_keys(texts)
        by_key = dict(zip(keys, texts))
        cache = RowCache(Path(self.folder) / self.hash) if self.folder else None
        found = cache.find(keys) if cache else {}
        missing = sorted((key for key in by_key if key not in found), key=lambda key: (-len(by_key[key]), key))
        kept: list[bytes] = []
        since = time.monotonic()
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            rows = self._encode([by_key[key] for key in batch])
            found.update(zip(batch, rows))
            kept += batch
            done = start + len(batch)
            if len(kept) >= KEEP_TEXTS or time.monotonic() - since > KEEP_SECONDS or done == len(missing):
                if cache:
                    cache.add(kept, np.stack([found[key] for key in kept]))
                kept, since = [], time.monotonic()
            if self.on_progress:
                self.on_progress(len(by_key) - len(missing) + done, len(by_key), "texts encoded")
        return np.stack([found[key] for key in keys])

    def _encode(self, texts: list[str]) -> np.ndarray:
        if self._model is None:
            self._model = _Pooled(self.plan, self.device)
        rows = self._model(texts)
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"{self.source}: the encoder gives values that are not finite, first for the text "
                f"{texts[wrong[0]][:80]!r}; its weights may be damaged"
            )
        return rows

    def save(self, directory: str | Path) -> None:
        """Write ``encoder.json``, which names the encoder and its hash; the weights stay where they are."""
        header = {"schema_version": SCHEMA_VERSION, "source": str(Path(self.source).resolve()), "hash": self.hash}
        write_atomically(Path(directory) / "encoder.json", json.dumps(header).encode())

    @classmethod
    def load(cls, directory: str | Path, source: str = "") -> "Encoder":
        """The encoder that ``save`` named, or that very one at another place, ``source``.

        ``ValueError`` where it is gone or is another one than it was.
        """
        header = read_header(Path(directory) / "encoder.json")
        place, known = source or header.get("source"), header.get("hash")
        if not isinstance(place, str) or not isinstance(known, str):
            raise ValueError(f"{directory}: damaged or incomplete embedder (no source or hash); fit it again")
        encoder = cls(0, 0, source=place)
        if encoder.hash != known:
            raise ValueError(
                f"{encoder.source}: expected the encoder with hash {known} that the items were embedded with, "
                f"got {encoder.hash}; give its directory as it was"
            )
        return encoder


class _Pooled:
    """Tokenizer, transformer, pooling and layers of a plan, in float32 and for inference."""

    def __init__(self, plan: EncoderPlan, device: str) -> None:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

        self.plan, self.device = plan, device
        try:
            config = AutoConfig.from_pretrained(plan.transformer, local_files_only=True)
            # Of a model that reads and writes, the part that reads.
            kind = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
            model = kind.from_pretrained(plan.transformer, dtype=torch.float32, local_files_only=True)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(plan.transformer, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{plan.transformer}: no encoder that transformers can open: {error}") from error
        self.model: nn.Module = model.to(device).eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Positions count from the left, so padding on the right changes no token's.
        self.tokenizer.padding_side = "right"
        self.most_tokens = plan.most_tokens or _length(self.tokenizer, config)
        self.reads = set(inspect.signature(self.model.forward).parameters)
        self.layers = [_dense(layer.directory, layer.activation).to(device) for layer in plan.layers]

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> np.ndarray:
        """B texts -> (B, D) float32."""
        texts = [self.plan.prompt + (text.lower() if self.plan.lower else text) for text in texts]
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        ).to(self.device)
        states = self.model(**{name: value for name, value in tokens.items() if name in self.reads}).last_hidden_state
        rows = pool(states, tokens["attention_mask"], self.plan.pooling)
        for layer in self.layers:
            rows = layer(rows)
        if self.plan.normalise:
            rows = nn.functional.normalize(rows, dim=1)
        return rows.float().cpu().numpy()


def pool(states: Tensor, mask: Tensor, modes: Sequence[str]) -> Tensor:
    """One row a text from the states of its tokens.

    Args:
        states: (B, T, D).
        mask: (B, T), 1 for tokens and 0 for padding on the right.
        modes: of ``encoder_plan.POOLINGS``; the rows of several are joined.

    Returns (B, D x modes).
    """
    weights = mask.unsqueeze(-1).to(states.dtype)
    count = weights.sum(1).clamp_min(1.0)
    last = (mask.sum(1) - 1).clamp_min(0)
    rows = {
        "cls": lambda: states[:, 0],
        "lasttoken": lambda: states[torch.arange(len(states), device=states.device), last],
        "max": lambda: states.masked_fill(weights == 0, -torch.inf).amax(1),
        "mean": lambda: (states * weights).sum(1) / count,
        "mean_sqrt_len_tokens": lambda: (states * weights).sum(1) / count.sqrt(),
    }
    return torch.cat([rows[mode]() for mode in modes], dim=1)


def _length(tokenizer: Any, config: Any) -> int:
    """Tokens of a text at most where the directory does not say: what tokenizer and model can take, else 512."""
    known = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    return min((length for length in known if length and 0 < length < NO_LIMIT), default=512)


def _dense(folder: Path, activation: str) -> nn.Module:
    """A dense layer from ``model.safetensors`` (or tensors alone of ``pytorch_model.bin``)."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if path.is_file():
        weights = load_file(path)
    elif (folder / "pytorch_model.bin").is_file():
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"{folder}: expected model.safetensors or pytorch_model.bin of a dense layer, found neither")
    try:
        weight, bias = weights["linear.weight"].float(), weights.get("linear.bias")
    except KeyError:
        raise ValueError(f"{folder}: expected linear.weight of a dense layer, got {sorted(weights)}") from None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias.float()
    return nn.Sequential(layer, getattr(nn, activation)())
