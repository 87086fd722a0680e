"""Reading the settings of a run from TOML and the command line, and writing them back.

A configuration is data: no expressions and no interpolation. Control arms are RL settings that inherit from ``[rl]``
what they do not say themselves. The record itself and the checks on its values stand in ``schema``.
"""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.launch.schema import ConfigError, PreferenceConfig, RunConfig, config_hash, select_sections, validate

__all__ = [
    "ConfigError",
    "PreferenceConfig",
    "RunConfig",
    "apply_reward_flags",
    "config_hash",
    "load_config",
    "select_sections",
    "shipped_configs",
    "to_toml",
    "validate",
]

T = TypeVar("T")


# Reading -------------------------------------------------------------------------------------------------------------


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.toml"))}


def load_config(path: Path | None, overrides: Sequence[str] = (), prog: str = "sidgym run CONFIG") -> RunConfig:
    """Read a TOML file (or the defaults, for None), apply command-line overrides, resolve the arms, validate.

    ``path`` may also be the bare name of a shipped configuration. ``overrides`` are options such as ``--rl.objective
    nll --data.users 500 --arms.nll.lr 1e-4 --rewards rule rank --reward-weights 1 0.5``; what they change in ``rl``
    reaches every arm that does not set the same field. A run without a name is called after its file.

    Raises ``ConfigError`` for what is wrong in the file or in the values. A malformed option, and ``--help``, end in
    ``SystemExit`` after a printed explanation, as in any command-line parser; ``prog`` is the command it shows.
    """
    table, source = _read(path)
    arms = table.pop("arms", {})
    if not isinstance(arms, dict):
        raise ConfigError(f"{source}: 'arms': expected tables [arms.NAME], got {_describe(arms)}")
    arm_options, options = split_arm_options(overrides)
    config = _build(RunConfig(name=Path(source).stem if path is not None else "run"), table, "", source)
    config = _apply_options(config, options, prog)
    config = replace(config, arms={name: _build(config.rl, t, f"arms.{name}", source) for name, t in arms.items()})
    config = apply_arm_options(config, arm_options, prog)
    validate(config, source)
    return config


def _read(path: Path | None) -> tuple[dict[str, Any], str]:
    """The parsed file and the name that error messages call it by."""
    if path is None:
        return {}, "configuration"
    path = Path(path)
    if not path.exists() and str(path) in shipped_configs():
        path = shipped_configs()[str(path)]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.name
    except OSError as error:
        shipped = ", ".join(shipped_configs())
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give a TOML file or one of the shipped names: {shipped}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not valid TOML: {error}") from error


def _hints(cls: type) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _known_keys(cls: type = RunConfig, prefix: str = "") -> tuple[str, ...]:
    """Every dotted key of a section and the sections in it, arms excepted."""
    keys: list[str] = []
    for name, kind in _hints(cls).items():
        keys.append(prefix + name)
        if is_dataclass(kind):
            keys.extend(_known_keys(kind, f"{prefix}{name}."))  # type: ignore[arg-type]
    return tuple(keys)


def _build(default: T, table: Any, where: str, source: str) -> T:
    """``default`` with the values of ``table``, which stands at the dotted key ``where`` of the file ``source``."""
    cls = type(default)
    prefix = f"{where}." if where else ""
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: '{where}': expected a table of {cls.__name__}, got {_describe(table)}")
    values: dict[str, Any] = {}
    for key, value in table.items():
        kind = _hints(cls).get(key)
        if kind is None:
            siblings = [prefix + name for name in _hints(cls)]
            near = difflib.get_close_matches(prefix + key, [*siblings, *_known_keys()], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(_hints(cls))}"
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {hint}")
        if is_dataclass(kind):
            values[key] = _build(getattr(default, key), value, prefix + key, source)
        else:
            values[key] = _convert(kind, value, prefix + key, source)
    return replace(default, **values)  # type: ignore[type-var]


def _convert(kind: Any, value: Any, where: str, source: str) -> Any:
    """``value`` as the field type ``kind``; only lossless conversions are made."""
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, str, bool) and type(value) is kind:  # bool is an int to isinstance
        return value
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) in (Union, UnionType):
        for option in get_args(kind):
            try:
                return _convert(option, value, where, source)
            except ConfigError:
                continue
    if get_origin(kind) is tuple and isinstance(value, list):
        element = get_args(kind)[0]
        places = [f"{where}[{i}]" for i in range(len(value))]
        if element is RewardConfig and any(isinstance(v, dict) and "name" not in v for v in value):
            raise ConfigError(f"{source}: '{where}': every term needs a 'name', such as name = \"rule\"; got {value!r}")
        if is_dataclass(element):
            return tuple(_build(element(), v, place, source) for v, place in zip(value, places))  # type: ignore[operator]
        return tuple(_convert(element, v, place, source) for v, place in zip(value, places))
    if get_origin(kind) is dict and isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{where}.{key}", source)
        return value
    raise ConfigError(f"{source}: '{where}': expected {_type_name(kind)}, got {_describe(value)}")


def _check_plain(value: Any, where: str, source: str) -> None:
    """Free-form arguments hold what JSON holds, so that they can be hashed and passed on the command line."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(item, f"{where}.{key}", source)
    elif not isinstance(value, str | int | float | bool):
        raise ConfigError(f"{source}: '{where}': expected str, int, float, bool, list or table, got {_describe(value)}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"list of {_type_name(get_args(kind)[0])}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_type_name, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return "table" if get_origin(kind) is dict else kind.__name__


def _describe(value: Any) -> str:
    name = {dict: "table"}.get(type(value), type(value).__name__)
    return f"{name} {value!r}"


# Command line --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """What the command line may change."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    rewards: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(default: as configured)")
    ] = None
    """Terms of rl's reward, by name in REWARDS or package.module:name, a weight behind it if wanted, such as gated:1
    rank:0.5. A term that reads the preference model has one fitted (preference.enabled)."""
    reward_weights: Annotated[
        tuple[float, ...] | None,
        tyro.conf.arg(metavar="[FLOAT ...]", help_behavior_hint="(default: as configured, 1 for new terms)"),
    ] = None
    """Weights of the terms, in their order."""
    reward_args: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar="[JSON ...]", help_behavior_hint="(default: as configured)")
    ] = None
    """Arguments of the terms, in their order: a JSON object each, such as '{"groups": "all"}', or '{}' for none."""
    preference_settings: Annotated[
        str | None, tyro.conf.arg(metavar="JSON", help_behavior_hint="(default: as configured)")
    ] = None
    """Settings of the preference model's kind, as a JSON object such as '{"hidden": 64}'."""


_DESCRIPTION = (
    "Every option of the configuration, with the value that holds without it. Control arms take the options of rl "
    "under their own name, such as --arms.nll.lr 1e-4; what an arm does not set itself it takes from rl."
)


def _apply_options(config: RunConfig, options: Sequence[str], prog: str) -> RunConfig:
    if not options:
        return config
    parsed = tyro.cli(_Options, default=_Options(config), args=list(options), prog=prog, description=_DESCRIPTION)
    flags = (parsed.rewards, parsed.reward_weights, parsed.reward_args)
    if parsed.rewards is not None and not parsed.rewards:
        raise ConfigError("--rewards: expected at least one name; for none at all set rl.rewards = [] in the TOML file")
    rl, preference = apply_reward_flags(parsed.config.rl, *flags), parsed.config.preference
    if parsed.preference_settings is not None:
        given = _json_object(parsed.preference_settings, "--preference-settings")
        preference = replace(preference, settings=given)
    if parsed.rewards is not None and not preference.enabled and reads_preference(rl):
        preference = replace(preference, enabled=True)
    return replace(parsed.config, rl=rl, preference=preference)


def reads_preference(rl: RlConfig) -> bool:
    """Whether a term of the reward reads the preference model. One that cannot be found is told where it is used."""
    from sidgym.envs.rewards import required_fields

    try:
        return any("preference" in required_fields(term) for term in rl.rewards)
    except ValueError:
        return False


def apply_reward_flags(
    rl: RlConfig,
    names: Sequence[str] | None,
    weights: Sequence[float] | None,
    arguments: Sequence[str] | None = None,
) -> RlConfig:
    """``rl`` with the reward terms ``names``, their ``weights`` and ``arguments`` (JSON objects, one a term).

    None leaves that side as configured: a term that is configured already keeps its weight and its arguments, a new
    one weighs 1 and has none. A name may carry its weight, as in ``gated:1``. Raises ``ConfigError`` if the lengths
    differ, for weights given in both ways, and for arguments that are no JSON object.
    """
    configured = {term.name: term for term in reversed(rl.rewards)}
    named = [split_weight(name) for name in names or ()]
    if weights is not None and any(weight is not None for _, weight in named):
        raise ConfigError("--reward-weights: --rewards gives weights already; give them in one of the two ways")
    terms = rl.rewards
    if names is not None:
        terms = tuple(configured.get(name, RewardConfig(name)) for name, _ in named)
        given = zip(terms, (weight for _, weight in named))
        terms = tuple(term if weight is None else replace(term, weight=weight) for term, weight in given)
    if weights is not None:
        if len(weights) != len(terms):
            listed = " ".join(term.name for term in terms) or "none"
            raise ConfigError(
                f"--reward-weights: expected {len(terms)} weights, one for each term ({listed}), got {len(weights)}"
            )
        terms = tuple(replace(term, weight=float(weight)) for term, weight in zip(terms, weights))
    if arguments is not None:
        if len(arguments) != len(terms):
            listed = " ".join(term.name for term in terms) or "none"
            raise ConfigError(
                f"--reward-args: expected {len(terms)} JSON objects, one for each term ({listed}; '{{}}' for no "
                f"arguments), got {len(arguments)}"
            )
        terms = tuple(replace(term, args=_json_object(text, term.name)) for term, text in zip(terms, arguments))
    return replace(rl, rewards=terms)


def split_weight(name: str) -> tuple[str, float | None]:
    """``gated:0.5`` as name and weight; a name without one, ``package.module:name`` included, has None."""
    front, _, weight = name.rpartition(":")
    try:
        return (front, float(weight)) if front else (name, None)
    except ValueError:  # the name of a function, no number
        return name, None


def _json_object(text: str, name: str) -> dict[str, Any]:
    """The arguments of reward ``name``, or the value of an option of that name, as given on the command line."""
    option, whose = (name, "") if name.startswith("--") else ("--reward-args", f" for reward {name!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        example = '{"tau": 0.1}' if whose else '{"hidden": 64}'
        raise ConfigError(
            f"{option}: expected a JSON object{whose}, such as '{example}'; got {text!r}: {error}"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{option}: expected a JSON object{whose}, got {_describe(value)}")
    for key, item in value.items():
        _check_plain(item, f"{name}.{key}", option)
    return value


def split_arm_options(overrides: Sequence[str], but: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Options that begin with --arms. and their values, and all others, the arms called ``but`` among them; each list
    keeps its order."""
    left = {name.replace("-", "_") for name in but}
    arms: list[str] = []
    others: list[str] = []
    target = others
    for token in overrides:
        if token.startswith("--") or token == "-h":
            target = arms if token.startswith("--arms.") and arm_in(token) not in left else others
        target.append(token)
    return arms, others


def arm_in(token: str) -> str:
    """The arm's name in an option such as ``--arms.grpo-sr.lr``, with underscores for dashes."""
    return token.removeprefix("--arms.").partition(".")[0].replace("-", "_")


def apply_arm_options(config: RunConfig, options: Sequence[str], prog: str) -> RunConfig:
    """``config`` with what options such as ``--arms.nll.lr 1e-4`` say of its arms; ``ConfigError`` for other names."""
    if not options:
        return config
    if not config.arms:
        raise ConfigError(f"{options[0]}: the configuration has no arms; add a table [arms.NAME] to it first")
    names = list(config.arms)
    for token in (token for token in options if token.startswith("--arms.")):
        if arm_in(token) not in {name.replace("-", "_") for name in names}:
            raise ConfigError(f"{token}: there is no arm of that name; known: {', '.join(names)}")
    columns = [(f"arm{i}", Annotated[RlConfig, tyro.conf.arg(name=f"arms.{name}")]) for i, name in enumerate(names)]
    flags = dataclasses.make_dataclass("Arms", columns, frozen=True)
    parsed = tyro.cli(flags, default=flags(*config.arms.values()), args=list(options), prog=prog)
    return replace(config, arms={name: getattr(parsed, f"arm{i}") for i, name in enumerate(names)})


# Writing -------------------------------------------------------------------------------------------------------------


def to_toml(config: RunConfig) -> str:
    """The resolved configuration as TOML; ``load_config`` of it gives an equal one."""
    return "\n".join(_table_lines(config, "")).strip() + "\n"


def _table_lines(record: Any, where: str) -> Iterator[str]:
    """Lines of a table: its values first, then the tables inside it, because a header ends the table above."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    tables = {name: value for name, value in values.items() if is_dataclass(value) or name == "arms"}
    lists = {
        name: value for name, value in values.items() if isinstance(value, tuple) and any(map(is_dataclass, value))
    }
    for name, value in values.items():
        if name not in tables and name not in lists:
            yield f"{name} = {_toml_value(value)}"
    prefix = f"{where}." if where else ""
    for name, value in lists.items():
        for entry in value:
            yield from ("", f"[[{prefix}{name}]]", *_table_lines(entry, f"{prefix}{name}"))
    for name, value in tables.items():
        nested = {f"{name}.{_toml_key(arm)}": rl for arm, rl in value.items()} if name == "arms" else {name: value}
        for key, entry in nested.items():
            yield from ("", f"[{prefix}{key}]", *_table_lines(entry, f"{prefix}{key}"))


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, Mapping):
        pairs = [f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    raise ConfigError(f"cannot write {_describe(value)} as TOML; expected str, int, float, bool, list or table")


def _toml_string(text: str) -> str:
    # JSON's escapes are TOML's too, except that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)
