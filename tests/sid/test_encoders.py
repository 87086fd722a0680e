"""Text encoders from a local directory: poolings, batches, the cache and what a kill leaves of it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidgym.sid import encoders
from sidgym.sid.config import SidConfig
from sidgym.sid.embed import load_embedder, make_embedder, save_embedder
from sidgym.sid.encoder_plan import encoder_hash, read_plan
from sidgym.sid.encoders import Encoder, pool

WORDS = ["red", "blue", "running", "shoe", "drill", "battery", "cotton", "shirt", "cordless", "charger"]
WIDTH = 12


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: a BERT of two layers with random weights and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    config = BertConfig(vocab_size=14, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=16)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def sentence_transformer(bert: Path, folder: Path, pooling: dict[str, Any], *extra: str, **settings: Any) -> Path:
    """The same as a directory of sentence-transformers."""
    shutil.copytree(bert, folder)
    kinds = ["Transformer", "Pooling", *extra]
    modules = [{"idx": place, "name": str(place), "path": f"{place}_{kind}" if place else "",
                "type": f"sentence_transformers.models.{kind}"} for place, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def states(folder: Path, text: str) -> torch.Tensor:
    """The last hidden states (T, D) of one text, by transformers' own calls."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).last_hidden_state[0]


TEXTS = ["red running shoe", "drill", "blue cotton shirt red running shoe", "cordless drill battery charger", "shirt"]


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens"])
def test_pooling_of_a_batch_is_that_of_each_text(bert: Path, tmp_path: Path, mode: str) -> None:
    folder = sentence_transformer(bert, tmp_path / "st", {"pooling_mode": mode})
    rows = Encoder(0, 0, source=str(folder)).embed(TEXTS)
    assert rows.shape == (len(TEXTS), WIDTH)
    assert rows.dtype == np.float32
    for text, row in zip(TEXTS, rows):
        tokens = states(folder, text)
        expected = {
            "mean": tokens.mean(0),
            "cls": tokens[0],
            "lasttoken": tokens[-1],
            "max": tokens.amax(0),
            "mean_sqrt_len_tokens": tokens.sum(0) / len(tokens) ** 0.5,
        }[mode]
        assert np.allclose(row, expected.numpy(), atol=1e-5)


def test_poolings_are_joined_in_order() -> None:
    values = torch.arange(12, dtype=torch.float32).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert pool(values, mask, ["cls", "mean"]).tolist() == [[0, 1, 2, 3], [6, 7, 6, 7]]


def test_flags_layers_and_normalisation(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    flags = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = sentence_transformer(bert, tmp_path / "st", flags, "Dense", "Normalize")
    weight, bias = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)), torch.full((5,), 0.1)
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    activation = "torch.nn.modules.activation.Tanh"
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"activation_function": activation}))
    rows = Encoder(0, 0, source=str(folder)).embed(TEXTS)
    expected = torch.tanh(torch.stack([states(folder, text)[0] for text in TEXTS]) @ weight.T + bias)
    assert np.allclose(rows, nn.functional.normalize(expected, dim=1).numpy(), atol=1e-5)


def test_a_bare_directory_is_pooled_by_the_mean(bert: Path) -> None:
    rows = Encoder(0, 0, source=str(bert)).embed(TEXTS[:1])
    assert np.allclose(rows[0], states(bert, TEXTS[0]).mean(0).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "encoder_decoder"])
def test_other_architectures(bert: Path, tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForTextEncoding, AutoTokenizer, Qwen3Config, Qwen3Model, T5Config, T5Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "causal":
            layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
            Qwen3Model(Qwen3Config(vocab_size=14, hidden_size=WIDTH, intermediate_size=16, **layers)).save_pretrained(
                tmp_path
            )
        else:
            sizes = {"d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
            T5Model(T5Config(vocab_size=14, d_model=WIDTH, **sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    rows = Encoder(0, 0, source=str(tmp_path)).embed(TEXTS)
    if kind == "causal":
        expected = [states(tmp_path, text).mean(0) for text in TEXTS]
    else:
        model, tokenizer = (
            AutoModelForTextEncoding.from_pretrained(tmp_path).eval(),
            AutoTokenizer.from_pretrained(bert),
        )
        with torch.no_grad():
            ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
            expected = [model(input_ids=one).last_hidden_state[0].mean(0) for one in ids]
    assert np.allclose(rows, torch.stack(expected).numpy(), atol=1e-4)


def test_length_case_and_prompt(bert: Path, tmp_path: Path) -> None:
    folder = sentence_transformer(bert, tmp_path / "st", {"pooling_mode": "mean"}, max_seq_length=4, do_lower_case=True)
    encoder = Encoder(0, 0, source=str(folder))
    cut, short, upper = encoder.embed(["red blue drill shirt", "red blue", "RED Blue"])
    assert np.allclose(cut, short, atol=1e-6)  # four tokens: [CLS] red blue [SEP]
    assert np.array_equal(short, upper) or np.allclose(short, upper, atol=1e-6)
    prompts = {"prompts": {"item": "cordless "}, "default_prompt_name": "item"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert np.allclose(
        Encoder(0, 0, source=str(folder)).embed(["red"])[0], states(folder, "cordless red").mean(0).numpy(), atol=1e-5
    )
    # Longer than the model has positions: cut there, too.
    assert np.isfinite(Encoder(0, 0, source=str(bert)).embed(["red " * 40])).all()


class Counting(Encoder):
    """Notes which texts went through the model, and dies where it is told to."""

    def __init__(self, *args: Any, dies_after: int = 10**9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoded: list[str] = []
        self.dies_after = dies_after

    def _encode(self, texts: list[str]) -> np.ndarray:
        if len(self.encoded) >= self.dies_after:
            raise KeyboardInterrupt
        self.encoded += texts
        return super()._encode(texts)


def many_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(np.array(WORDS)[rng.integers(0, 10, 1 + rng.integers(9))]) for _ in range(count)]


def distinct(texts: Sequence[str]) -> int:
    return len(set(texts))


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "BATCH", 8)
    monkeypatch.setattr(encoders, "KEEP_TEXTS", 16)
    texts = many_texts(100)
    whole = Encoder(0, 0, source=str(bert)).embed(texts)
    with pytest.raises(KeyboardInterrupt):
        Counting(0, 0, source=str(bert), cache=tmp_path, dies_after=40).embed(texts)
    seen: list[tuple[int, int, str]] = []
    again = Counting(0, 0, source=str(bert), cache=tmp_path, on_progress=lambda *told: seen.append(told))
    assert np.array_equal(again.embed(texts), whole)
    assert len(again.encoded) == distinct(texts) - 32  # two files of 16 were kept, the last batch was lost
    assert seen[0][0] == 40
    assert seen[-1] == (distinct(texts), distinct(texts), "texts encoded")
    third = Counting(0, 0, source=str(bert), cache=tmp_path)
    assert np.array_equal(third.embed(texts[::-1]), whole[::-1])
    assert third.encoded == []


def test_equal_texts_are_encoded_once_and_long_ones_first(bert: Path) -> None:
    encoder = Counting(0, 0, source=str(bert))
    rows = encoder.embed(["red", "blue shirt", "red"])
    assert encoder.encoded == ["blue shirt", "red"]
    assert np.array_equal(rows[0], rows[2])


def test_another_encoder_has_another_cache(bert: Path, tmp_path: Path) -> None:
    other = sentence_transformer(bert, tmp_path / "st", {"pooling_mode": "cls"})
    first = Counting(0, 0, source=str(bert), cache=tmp_path / "cache")
    first.embed(TEXTS)
    second = Counting(0, 0, source=str(other), cache=tmp_path / "cache")
    assert not np.allclose(second.embed(TEXTS), first.embed(TEXTS))
    assert len(second.encoded) == len(TEXTS)
    before = encoder_hash(other)
    (other / "README.md").write_text("words")
    assert encoder_hash(other) == before
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    assert encoder_hash(other) != before


def test_a_damaged_cache_is_passed_over(bert: Path, tmp_path: Path) -> None:
    rows = Encoder(0, 0, source=str(bert), cache=tmp_path).embed(TEXTS)
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    again = Counting(0, 0, source=str(bert), cache=tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        assert np.array_equal(again.embed(TEXTS), rows)
    assert len(again.encoded) == len(TEXTS)


def test_what_is_not_finite_is_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = Encoder(0, 0, source=str(folder), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="not finite"):
        encoder.embed(TEXTS)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_saved_by_name_and_checked_by_hash(bert: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(bert, here)
    config = SidConfig(embedder="encoder", encoder=str(here))
    embedder = make_embedder(config, 0, cache=tmp_path / "cache").fit(TEXTS)
    rows = embedder.embed(TEXTS)
    save_embedder(embedder, tmp_path / "saved", "encoder")
    assert np.array_equal(load_embedder(tmp_path / "saved").embed(TEXTS), rows)
    assert np.isfinite(load_embedder(tmp_path / "saved").embed(["a new red shoe"])).all()
    moved = tmp_path / "there"
    here.rename(moved)
    with pytest.raises(ValueError, match="is not a folder"):
        load_embedder(tmp_path / "saved")
    assert np.array_equal(load_embedder(tmp_path / "saved", source=str(moved)).embed(TEXTS), rows)
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="expected the encoder with hash"):
        load_embedder(tmp_path / "saved", source=str(moved))
    path = tmp_path / "saved" / "encoder.json"
    header = json.loads(path.read_text())
    for key, value in (("source", None), ("hash", None), ("source", []), ("hash", 3), ("schema_version", 2)):
        path.write_text(json.dumps({**header, key: value}))
        with pytest.raises(ValueError, match=r"damaged or incomplete|schema_version"):
            load_embedder(tmp_path / "saved")


def test_directories_that_are_no_encoder_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs sid\.encoder"):
        make_embedder(SidConfig(embedder="encoder"), 0)
    with pytest.raises(ValueError, match="is not a folder"):
        read_plan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found neither"):
        read_plan(tmp_path)
    with pytest.raises(ValueError, match="module 'LSTM' is not supported"):
        read_plan(sentence_transformer(bert, tmp_path / "a", {"pooling_mode": "mean"}, "LSTM"))
    with pytest.raises(ValueError, match="pooling 'weightedmean' is not supported"):
        read_plan(sentence_transformer(bert, tmp_path / "b", {"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(ValueError, match=r"2 of 3 items have no text, first rows \[0, 2\]"):
        Encoder(0, 0, source=str(bert)).embed(["", "red", "  "])
    empty = tmp_path / "c"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no encoder that transformers can open"):
        Encoder(0, 0, source=str(empty)).embed(["red"])
