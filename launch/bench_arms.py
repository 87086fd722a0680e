"""The arms of a contest: RL settings by name, one base for all, from a configuration and the command line.

Left out: training them (``bench_runs``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from sidgym.agents.config import RlConfig
from sidgym.agents.objectives import OBJECTIVES
from sidgym.agents.recipes import EMPTY, completed, recipe_of
from sidgym.benchmarks.arms_summary import CONTROL, START
from sidgym.launch.schema import TAKEN, ConfigError, RunConfig, validate

KEPT = ("objective", "rewards", "checkpoint_every", "env_runners")
"""Settings that are told otherwise (objective, rewards), or change no result."""


def with_arms(config: RunConfig, objectives: Sequence[str], options: Sequence[str] = ()) -> RunConfig:
    """``config`` with an arm for each objective and the control, and no others.

    An objective is a name in OBJECTIVES, ``package.module:name``, or the name of an arm that the configuration has; its
    settings are those of the configuration's arm of that name, else ``rl``'s. ``options`` are command-line options that
    ``config`` was read with: what they say of ``rl`` reaches all arms that learn from rewards, also those that the
    configuration gives a value of their own, unless the options say otherwise of the arm itself.

    Raises ``ConfigError`` for names that cannot stand beside each other or values that cannot work.
    """
    refuse_idle(options, {"objective": "name objectives with --objectives"})
    arms: dict[str, RlConfig] = {}
    for text in dict.fromkeys(objectives):
        if text in ("nll", CONTROL, START):
            continue  # always there
        name = arm_name(text, {*arms, *config.arms, *OBJECTIVES, CONTROL})
        if name in arms:
            raise ConfigError(f"--objectives: {text} would go by the name {name!r}, as another one does; rename one")
        arms[name] = arm_of(config, text, options)
    if not arms:
        raise ConfigError("--objectives: expected at least one besides the control 'nll', such as grpo ecpo")
    arms[CONTROL] = control_arm(config)
    chosen = replace(config, arms=arms)
    validate(chosen, "bench")
    return chosen


def arm_name(text: str, others: Collection[str] = ()) -> str:
    """What an objective's arm, folder and table row are called: without its module where none of ``others`` is called
    so."""
    module, _, name = text.rpartition(":")
    if module and (name in others or name in TAKEN):
        name = f"{module.replace('.', '-')}-{name}"
    if name in TAKEN:
        raise ConfigError(f"--objectives: {name!r} is the name of another system in the tables; call yours otherwise")
    return name


def arm_of(config: RunConfig, text: str, options: Sequence[str]) -> RlConfig:
    """The settings of an objective's or a configured arm's own, with what ``options`` say of ``rl``: see
    ``with_arms``."""
    if text in config.arms:
        rl = config.arms[text]
    elif text == config.rl.objective:
        rl = config.rl
    else:
        rl = replace(config.rl, objective=text)
    if not recipe_of(rl.objective).rewarded:
        return rl
    named, own = _named(options, "--rl."), _named(options, f"--arms.{text}.")
    given = [name for name in named if name not in (*own, "objective")]
    return replace(rl, **{name: getattr(config.rl, name) for name in given})


def refuse_idle(options: Sequence[str], owned: Mapping[str, str]) -> None:
    """Raises ``ConfigError`` for an option that no arm would follow: ``owned`` has the fields of ``rl`` that every arm
    has of its own, and what to do instead."""
    flags = {"rewards": ("rewards", "reward-weights", "reward-args")}
    for name, instead in owned.items():
        known = {f"--rl.{name.replace('_', '-')}", *(f"--{flag}" for flag in flags.get(name, ()))}
        for token in (token for token in options if token.partition("=")[0].replace("_", "-") in known):
            raise ConfigError(
                f"{token}: every arm of this contest has {name} of its own, so it would change none; {instead}"
            )


def overridden(rl: RlConfig) -> list[str]:
    """What an objective would bring along and the settings have otherwise, in words."""
    own = recipe_of(rl.objective)
    return [
        f"{name} {getattr(rl, name)} (its own: {getattr(own, name)})"
        for name in EMPTY
        if getattr(own, name) and getattr(rl, name) and getattr(rl, name) != getattr(own, name)
    ]


def told_of(config: RunConfig) -> list[str]:
    """What the report says of all arms: the reward and the budget where they have the same, and what is overridden."""
    arms = {name: arm for name, arm in config.arms.items() if name != CONTROL}
    rewards = {rewards_of([asdict(term) for term in arm.rewards]) for arm in arms.values()}
    told = [f"All arms learn from the reward {rewards.pop()}."] if len(rewards) == 1 else []
    budgets = {
        f"{arm.steps} iterations of {arm.contexts_per_step} contexts with {arm.group_size} candidates each, "
        f"{arm.epochs} pass{'es' if arm.epochs > 1 else ''} over a rollout"
        + (f" in minibatches of {arm.minibatch} contexts." if arm.minibatch else ".")
        for arm in arms.values()
    }
    told += [budgets.pop()] if len(budgets) == 1 else []
    set_otherwise = [f"{name} {', '.join(said)}" for name, arm in arms.items() if (said := overridden(arm))]
    if set_otherwise:
        told.append(
            f"Set by the configuration in place of what the objective brings along: {'; '.join(set_otherwise)}."
        )
    return told


def rates_of(config: RunConfig) -> str:
    """The arms' learning rates in words."""
    rates = {name: f"{arm.lr:g}" for name, arm in config.arms.items() if name != CONTROL}
    same = len(set(rates.values())) == 1
    listed = f"{next(iter(rates.values()))} for every arm" if same else ", ".join(map(" ".join, rates.items()))
    return f"Learning rates: {listed}; the control's is {config.arms[CONTROL].lr:g}."


def notes_of_objectives(config: RunConfig, source: RunConfig) -> tuple[str, ...]:
    """What the report says of a contest of objectives; ``source`` is the configuration that its arms come from."""
    taken = [
        name for name, arm in config.arms.items()
        if name not in (*source.arms, CONTROL) and arm.objective != source.rl.objective
    ]  # fmt: skip
    how = "They are those of the configuration and its options"
    how += f"; {', '.join(taken)}: rl's, which was chosen for {source.rl.objective}, if for any." if taken else "."
    return (*told_of(config), f"{rates_of(config)} {how}")


def _named(options: Sequence[str], prefix: str) -> list[str]:
    """Fields of ``RlConfig`` that options with a prefix set."""
    found = [token.removeprefix(prefix).partition("=")[0] for token in options if token.startswith(prefix)]
    names = [name.replace("-", "_") for name in found]
    known = {field.name for field in fields(RlConfig)}
    return [bare for name in names if (bare := name if name in known else name.removeprefix("no_")) in known]


def control_arm(config: RunConfig) -> RlConfig:
    """The configuration's own likelihood-only arm, else one with the settings of ``rl``."""
    for name in (CONTROL, "nll"):
        if name in config.arms:
            return config.arms[name]
    return replace(config.rl, objective="nll", nll_weight=1.0)


def settings_of(rl: RlConfig) -> dict[str, Any]:
    """An arm's settings as JSON values, empty ones replaced by what they stand for."""
    full = completed(rl)
    full = replace(full, clip_high=full.clip_high or full.clip)
    return {"objective": rl.objective} | {key: value for key, value in asdict(full).items() if key not in KEPT}


def rewards_of(terms: Sequence[Mapping[str, Any]]) -> str:
    """A reward's terms (``RewardConfig`` as JSON values) in words, such as ``rule + 0.5 rank (k=5)``; "" for none."""
    said = []
    for term in terms:
        weight = "" if term["weight"] == 1 else f"{term['weight']:g} "
        args = ", ".join(f"{key}={value}" for key, value in term["args"].items())
        said.append(f"{weight}{term['name']}" + (f" ({args})" if args else ""))
    return " + ".join(said)


def differences(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arm -> its objective and those of its settings (``settings_of``) that are not the same in all arms."""
    first: Mapping[str, Any] = next(iter(arms.values()), {})
    unequal = [key for key in first if key == "objective" or any(one.get(key) != first[key] for one in arms.values())]
    return {name: {key: settings.get(key) for key in unequal} for name, settings in arms.items()}
