"""Semantic IDs for two catalogues from one tokeniser, so that a policy of the first can be asked about the second.

Both tables have the same levels and sizes, hence the same tokens. The codebook is fitted on the first catalogue alone,
the second being wholly unknown to it, or on both. Left out: training and judging (``bench_transfer``).

Symbols: N and M items of the first and the second catalogue.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sidgym.envs.records import Catalogue
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import make_embedder
from sidgym.sid.residual import check_embeddings
from sidgym.sid.table import SidTable
from sidgym.sid.tokenizers import build_table, code_costs, load_tokenizer

FITTED = ("first", "both")


def shared_tables(
    first: Catalogue, second: Catalogue, config: SidConfig, seed: int, fitted: str = "first"
) -> tuple[SidTable, SidTable]:
    """The tables of both catalogues (N and M rows) by one embedder and one tokeniser.

    ``fitted``: ``first`` fits both on the first catalogue's texts and gives the second one's items the nearest codes;
    ``both`` fits them on all texts. SIDs are distinct over both catalogues as far as ``config.collisions`` sees to it.
    Raises ``ValueError`` for settings that go with one catalogue alone (an index, an alignment, a tokeniser that reads
    categories), and for items without texts.
    """
    if fitted not in FITTED:
        raise ValueError(f"fitted: expected one of {', '.join(FITTED)}, got {fitted!r}")
    if config.index or config.alignment:
        raise ValueError(
            "two catalogues with one codebook: sid.index and sid.alignment belong to one; leave them empty"
        )
    texts = [list(one.texts()) for one in (first, second)]
    if not all(any(part) for part in texts):
        raise ValueError("two catalogues with one codebook need item texts in both")
    ids = [np.array([f"{number}:{name}" for name in one.ids]) for number, one in ((1, first), (2, second))]
    learned = texts[0] if fitted == "first" else texts[0] + texts[1]
    embedder = make_embedder(config, seed).fit(learned)
    vectors = [check_embeddings(embedder.embed(part)) for part in texts]
    with TemporaryDirectory() as scratch:
        own = vectors[0] if fitted == "first" else np.concatenate(vectors)
        named = ids[0] if fitted == "first" else np.concatenate(ids)
        union = build_table(own, named, config, seed, save_to=Path(scratch))
        if fitted == "first":
            tokenizer = load_tokenizer(scratch)
            codes = tokenizer.encode(vectors[1])
            union = union.extend(ids[1], codes, code_costs(tokenizer, vectors[1]), sizes=tokenizer.sizes)
    count = len(ids[0])
    told = {**union.metadata, "shared": {"fitted": fitted, "first": count, "second": len(ids[1])}}
    return (
        SidTable(union.codes[:count], union.sizes, np.asarray(first.ids, dtype=str), told),
        SidTable(union.codes[count:], union.sizes, np.asarray(second.ids, dtype=str), told),
    )


def with_index(config: SidConfig, folder: Path) -> SidConfig:
    """``config`` that reads a table saved in ``folder`` instead of fitting one; its SIDs stay as they are."""
    return replace(config, index=str(folder))
