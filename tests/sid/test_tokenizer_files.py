"""Saved tokenisers whose files were damaged: refused, or without harm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidgym.sid.rq_kmeans_plus import RQKMeansPlus
from sidgym.sid.rq_vae import RQVAE, VaeSettings
from sidgym.sid.tokenizer_files import read_tokenizer, write_tokenizer
from sidgym.sid.tokenizers import TOKENIZERS, load_tokenizer, save_tokenizer

NAMES = sorted(TOKENIZERS)
QUICK = VaeSettings(latent=4, hidden=(16,), steps=10, batch=64, revive_every=5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks small enough for a test."""
    for kind in (RQVAE, RQKMeansPlus):
        monkeypatch.setattr(kind, "defaults", QUICK)


def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)


def items_for(name: str) -> Any:
    paths = [("Shop", f"aisle {row % 3}", f"shelf {row % 7}")[: 1 + row % 5] for row in range(60)]
    return paths if name == "category" else embeddings()


DAMAGE: list[Any] = [None, "x", {}, [], -1, 0, 2.5, True, 10**6]
"""What a header's value may have become."""

UNSEEN = {
    "random": ("levels", "codes", "seed"),
    "category": ("codes", "skipped"),
    "rq_vae": ("scale",),
    "rq_kmeans_plus": ("scale",),
}
"""Values that nothing else in the files repeats: another one of the right kind cannot be told."""


def refused_or_the_same(directory: Path, x: Any, codes: np.ndarray) -> bool:
    """Whether a damaged tokeniser is refused; one that loads must give the codes that it gave."""
    try:
        loaded = load_tokenizer(directory)
    except ValueError:
        return True
    assert np.array_equal(loaded.encode(x), codes)
    return False


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_header_is_refused_or_does_no_harm(name: str, tmp_path: Path) -> None:
    x = items_for(name)
    tokenizer = TOKENIZERS[name](3, 4, 11).fit(x)
    tokenizer.save(tmp_path)
    codes, path = tokenizer.encode(x), tmp_path / "tokenizer.json"
    header = json.loads(path.read_text())
    refused = {}
    for key in header:
        for value in DAMAGE[:3] if key in UNSEEN.get(name, ()) else DAMAGE:
            path.write_text(json.dumps({**header, key: value}))
            refused[key, str(value)] = refused_or_the_same(tmp_path, x, codes)
        path.write_text(json.dumps({one: value for one, value in header.items() if one != key}))
        assert refused_or_the_same(tmp_path, x, codes), f"without {key}"
    for key in header:
        assert refused[key, "None"], key
    assert refused.get(("levels", "-1"), True)
    assert refused.get(("codes", "2.5"), True)
    for fewer in range(1, 3):
        path.write_text(json.dumps({**header, "levels": fewer}))
        assert name == "random" or refused_or_the_same(tmp_path, x, codes)
    path.write_text(json.dumps(header))
    assert not refused_or_the_same(tmp_path, x, codes)


@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
@pytest.mark.parametrize("name", NAMES)
def test_damaged_arrays_are_refused(name: str, tmp_path: Path) -> None:
    x = items_for(name)
    tokenizer = TOKENIZERS[name](3, 4, 11).fit(x)
    tokenizer.save(tmp_path)
    codes = tokenizer.encode(x)
    header, arrays = read_tokenizer(tmp_path, type(tokenizer))

    def refused(changed: dict[str, np.ndarray]) -> bool:
        write_tokenizer(tmp_path, type(tokenizer), {k: v for k, v in header.items() if k != "content_hash"}, changed)
        return refused_or_the_same(tmp_path, x, codes)

    assert not refused(arrays)
    for key, array in arrays.items():
        assert refused({one: value for one, value in arrays.items() if one != key}), f"without {key}"
        if array.dtype.kind == "f":
            broken = array.copy()
            broken.reshape(-1)[-1] = np.nan
            assert refused({**arrays, key: broken}), f"NaN in {key}"
        assert refused({**arrays, key: array[None]}), f"another shape of {key}"
    (tmp_path / "tokenizer.safetensors").unlink()
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["rq_vae", "rq_kmeans_plus"])
@pytest.mark.filterwarnings("ignore::sidgym.sid.rq_vae.CollapseWarning")
def test_settings_that_are_not_those_of_the_weights_are_refused(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name](2, 4, 0).fit(embeddings())
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    header = json.loads(path.read_text())
    state = torch.get_rng_state()
    for changed in ({"hidden": [9]}, {"hidden": [16, 16]}, {"hidden": 16}, {"hidden": ["x"]}, {"depth": 3}):
        path.write_text(json.dumps({**header, "settings": {**header["settings"], **changed}}))
        with pytest.raises(ValueError, match="damaged or incomplete"):
            load_tokenizer(tmp_path)
    for changed in ({"width": 9}, {"scale": None}, {"scale": float("inf")}, {"scale": -1.0}, {"losses": None}):
        path.write_text(json.dumps({**header, **changed}))
        with pytest.raises(ValueError, match="damaged or incomplete"):
            load_tokenizer(tmp_path)
    assert torch.equal(state, torch.get_rng_state()), "nor is the process's own random stream touched"


def test_damaged_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no tokenizer\.json"):
        load_tokenizer(tmp_path)
    x = embeddings()
    for seed in (0, 1):
        save_tokenizer(TOKENIZERS["rq_kmeans"](2, 4, seed).fit(x), tmp_path / str(seed))
    header = json.loads((tmp_path / "0" / "tokenizer.json").read_text())

    def with_header(**changed: Any) -> Path:
        (tmp_path / "0" / "tokenizer.json").write_text(json.dumps({**header, **changed}))
        return tmp_path / "0"

    with pytest.raises(ValueError, match="expected schema_version 1, got 99"):
        load_tokenizer(with_header(schema_version=99))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_tokenizer(with_header(levels=3))
    with pytest.raises(ValueError, match="unknown tokenizer 'rq_means'"):
        load_tokenizer(with_header(tokenizer="rq_means"))
    with pytest.raises(ValueError, match="expected a class with load"):
        load_tokenizer(with_header(tokenizer="json:dumps"))
    with pytest.raises(ValueError, match="expected a 'rq_kmeans' tokeniser, got 'random'"):
        TOKENIZERS["rq_kmeans"].load(with_header(tokenizer="random"))  # type: ignore[attr-defined]
    directory = with_header()
    other = (tmp_path / "1" / "tokenizer.safetensors").read_bytes()
    (directory / "tokenizer.safetensors").write_bytes(other)
    with pytest.raises(ValueError, match="do not belong together"):
        load_tokenizer(directory)
    (directory / "tokenizer.safetensors").write_bytes(other[:40])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_tokenizer(directory)
