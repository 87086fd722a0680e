"""Settings of the Semantic ID stage."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SidConfig:
    """How items get their codes."""

    tokenizer: str = "rq_kmeans"
    """Name in TOKENIZERS, or package.module:name."""
    embedder: str = "tfidf_svd"
    """Name in EMBEDDERS, or package.module:name."""
    embedding_dim: int = 64
    """Width of the item embeddings; an encoder's or a file's own where that is given."""
    encoder: str = ""
    """Directory of a sentence-transformers or Hugging Face encoder (embedder "encoder"), or a .npy file ("file")."""
    alignment: str = ""
    """How embeddings are aligned with the log before they are quantised: empty (not at all) or a name in ALIGNMENTS."""
    levels: int = 3
    """Levels L of quantisation; the collision policy may add one."""
    codes: int = 32
    """Codes K on each level."""
    collisions: str = "extra_level"
    """What to do with items that share all codes: extra_level, reassign, keep or forbid."""
    index: str = ""
    """A ready-made index (*.index.json, CSV, Parquet, or a folder of SidTable.save); when given, nothing is fitted."""
