"""What a text encoder's directory asks for: which modules, pooling and lengths, read without sentence-transformers.

Two kinds of directory are read. One of sentence-transformers lists its modules in ``modules.json``: a transformer, a
pooling, and perhaps dense layers and a normalisation. Any other one of Hugging Face is a transformer alone; as in
sentence-transformers it is then pooled by the mean over its tokens and not normalised. Left out: running it
(``encoders``), and modules beyond these, which are refused by name.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken")
"""In the order in which several poolings are joined."""

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU")
"""Of a dense layer, as torch.nn names them."""

READ = (".json", ".txt", ".model", ".safetensors", ".bin")
"""Endings of the files that decide what an encoder gives."""


@dataclass(frozen=True)
class Layer:
    """A dense layer behind the pooling."""

    directory: Path
    activation: str  # one of ACTIVATIONS


@dataclass(frozen=True)
class EncoderPlan:
    """How the texts of an encoder's directory become rows."""

    transformer: Path
    pooling: tuple[str, ...]  # of POOLINGS; several are joined
    layers: tuple[Layer, ...] = ()
    normalise: bool = False
    most_tokens: int | None = None  # longer texts are cut; None leaves it to tokenizer and model
    lower: bool = False
    prompt: str = ""  # put before every text


def read_plan(directory: str | Path) -> EncoderPlan:
    """The plan of a local encoder.

    ``ValueError`` for a directory without an encoder, and for modules, poolings or prompts that are not supported.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ValueError(
            f"encoder {str(directory)!r} is not a folder; give the local directory of a sentence-transformers or "
            "Hugging Face encoder (nothing is downloaded)"
        )
    if not (root / "modules.json").is_file():
        if not (root / "config.json").is_file():
            raise ValueError(f"{root}: expected modules.json or config.json of an encoder, found neither")
        return EncoderPlan(root, ("mean",))
    modules = _read(root / "modules.json", kind=list)
    if not all(isinstance(entry, dict) for entry in modules):
        raise ValueError(f"{root / 'modules.json'}: expected a list of modules")
    kinds = [str(entry.get("type", "")).rpartition(".")[2] for entry in modules]
    folders = [root / str(entry.get("path", "")) for entry in modules]
    return _assemble(root, kinds, folders)


def _assemble(root: Path, kinds: list[str], folders: list[Path]) -> EncoderPlan:
    """The plan of modules in their order; ``ValueError`` for an order or a module that is not supported."""
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ValueError(f"{root}: expected the modules Transformer, Pooling, ..., got {', '.join(kinds) or 'none'}")
    pooling, whole = _pooling(folders[1])
    layers, normalise = [], False
    for kind, folder in zip(kinds[2:], folders[2:]):
        if kind == "Dense" and not normalise:
            layers.append(_layer(folder))
        elif kind == "Normalize":
            normalise = True
        elif kind != "Dropout":
            raise ValueError(
                f"{root}: module {kind!r} is not supported at this place; supported are Transformer, Pooling, Dense, "
                "Dropout and Normalize, in this order. Encode with its own package and give sid.embedder = 'file'"
            )
    prompt = _prompt(root)
    if prompt and not whole:
        raise ValueError(f"{root}: a pooling that leaves the prompt out is not supported; give sid.embedder = 'file'")
    settings = _read(folders[0] / "sentence_bert_config.json", missing={})
    most = settings.get("max_seq_length")
    if most is not None and not (isinstance(most, int) and most > 0):
        raise ValueError(f"{folders[0]}: sentence_bert_config.json: expected max_seq_length above 0, got {most!r}")
    return EncoderPlan(
        transformer=folders[0],
        pooling=pooling,
        layers=tuple(layers),
        normalise=normalise,
        most_tokens=most,
        lower=bool(settings.get("do_lower_case")),
        prompt=prompt,
    )


def _pooling(folder: Path) -> tuple[tuple[str, ...], bool]:
    """The poolings of a pooling module, and whether a prompt's tokens count."""
    settings = _read(folder / "config.json")
    named = settings.get("pooling_mode")
    if named is None:
        flags = {key.removeprefix("pooling_mode_").removesuffix("_tokens"): on for key, on in settings.items()
                 if key.startswith("pooling_mode_")}  # fmt: skip
        named = [{"cls_token": "cls", "mean_sqrt_len": "mean_sqrt_len_tokens"}.get(mode, mode)
                 for mode, on in flags.items() if on] or ["mean"]  # fmt: skip
    modes = [named] if isinstance(named, str) else list(named)
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown:
        raise ValueError(
            f"{folder / 'config.json'}: pooling {unknown[0]!r} is not supported; expected {', '.join(POOLINGS)}"
        )
    ordered = modes if "pooling_mode" in settings else [mode for mode in POOLINGS if mode in modes]
    return tuple(ordered), bool(settings.get("include_prompt", True))


def _layer(folder: Path) -> Layer:
    settings = _read(folder / "config.json")
    activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2].rstrip("()")
    if activation not in ACTIVATIONS or settings.get("use_residual"):
        raise ValueError(f"{folder / 'config.json'}: expected a plain layer with one of {', '.join(ACTIVATIONS)}")
    return Layer(folder, activation)


def _prompt(root: Path) -> str:
    """The prompt that the encoder puts before a text unless told otherwise."""
    settings = _read(root / "config_sentence_transformers.json", missing={})
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise ValueError(f"{root}: config_sentence_transformers.json: expected prompts by name, got {prompts!r}")
    return str(prompts.get(name) or "") if name else ""


def _read(path: Path, missing: Any = None, kind: type = dict) -> Any:
    """A JSON file; ``missing`` where there is none and that is given; ``ValueError`` where it cannot be read.

    ``kind`` is what it must hold, an object (dict) or a list.
    """
    if missing is not None and not path.is_file():
        return missing
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path} is missing; the encoder's directory is incomplete") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {'list' if kind is list else 'object'}, got {value!r}")
    return value


def encoder_hash(directory: str | Path) -> str:
    """Hash of every file of an encoder's directory that decides what it gives, by name and content."""
    root = Path(directory)
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix in READ):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()[:16]
