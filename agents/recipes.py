"""What a configuration means for its objective: settings left empty, what is needed, what cannot make a difference.

    completed(config)         empty settings replaced by the objective's own
    check_objective(config)   refuses what the objective cannot use
    indistinct(config)        why the objective cannot differ from GRPO here, if it cannot

They work for users' functions, too, by the attribute ``recipe`` (``objectives.Recipe``). Left out: the objectives
(``objectives``), and values that no objective could use (``launch.schema``).
"""

from dataclasses import replace

from sidgym.agents.advantages import ADVANTAGES, TwoStep
from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.objectives import OBJECTIVES, RECIPES, ObjectiveSpec, Recipe
from sidgym.sid.registry import resolve

EMPTY = ("advantage", "ratio", "clip_high", "kl_weight", "nll_weight", "refills")
"""Settings that an objective brings along where they are empty or 0."""
FORMAT = "format"
"""The reward that says which candidates are legal."""


def recipe_of(objective: str) -> Recipe:
    """What the objective called ``objective`` is: its entry in ``RECIPES``, or a user's function's own ``recipe``."""
    if objective in RECIPES:
        return RECIPES[objective]
    recipe = getattr(resolve("objective", objective, OBJECTIVES), "recipe", Recipe())
    if not isinstance(recipe, Recipe):
        raise ValueError(f"objective {objective!r}: expected its recipe to be a Recipe, got {type(recipe).__name__}")
    return recipe


def completed(config: RlConfig) -> RlConfig:
    """The same settings, empty ones replaced by the objective's own; complete ones come back as they are.

    Where some candidates count for their format alone, the reward ``format`` is added unless it is there.
    """
    recipe = recipe_of(config.objective)
    own = {name: getattr(recipe, name) for name in EMPTY if not getattr(config, name) and getattr(recipe, name)}
    if recipe.format and FORMAT not in {term.name for term in config.rewards}:
        own["rewards"] = (*config.rewards, RewardConfig(FORMAT))
    return replace(config, **own) if own else config


def spec_of(config: RlConfig) -> ObjectiveSpec:
    """The settings that an objective is called with."""
    config = completed(config)
    return ObjectiveSpec(
        clip=config.clip,
        kl_weight=config.kl_weight,
        nll_weight=config.nll_weight,
        ratio=config.ratio,
        clip_high=config.clip_high,
        ecpo_delta=config.ecpo_delta,
        kl_estimator=config.kl_estimator,
        list_temperature=config.list_temperature,
    )


def check_objective(config: RlConfig) -> None:
    """Raises ``ValueError`` for settings that the objective cannot be used with; it says which would do."""
    name, recipe = config.objective, recipe_of(config.objective)
    if config.refills and not recipe.rewarded:
        raise ValueError(
            f"objective {name!r} reads no advantages, so no group of it is without signal; expected rl.refills = 0, "
            f"got {config.refills}"
        )
    if recipe.mode and config.mode != recipe.mode:
        raise ValueError(f"objective {name!r} needs rl.mode = {recipe.mode!r}, got {config.mode!r}")
    if (recipe.pairs or recipe.format) and config.environment != "next_item":
        raise ValueError(
            f"objective {name!r} judges single items; expected rl.environment = 'next_item', got {config.environment!r}"
        )
    if recipe.pairs and config.mode == "cut":
        raise ValueError(f"objective {name!r} compares SIDs, and with rl.mode = 'cut' candidates are nodes of the trie")
    advantage = completed(config).advantage
    if recipe.format and isinstance(resolve("advantage", advantage, ADVANTAGES), TwoStep):
        raise ValueError(
            f"objective {name!r} gives some candidates the advantage of their format, which {advantage!r} would divide "
            "by the spread of the rollout; take one that looks at single groups, such as 'group_standardised'"
        )


def on_policy(config: RlConfig) -> bool:
    """Whether every group is learned from once, by the weights that drew it: then every importance ratio is 1, up to
    rounding (engine and update may compute in different precision)."""
    whole = config.minibatch == 0 or config.minibatch >= config.contexts_per_step
    return config.epochs == 1 and whole and config.staleness == 0


def indistinct(config: RlConfig) -> str | None:
    """Why these settings give the gradient of ``grpo`` (up to a factor), or None where they do not.

    Where every ratio is 1, objectives that differ only in ratios, clips and bounds are one and the same; what is left
    are advantages, filtering and formats. So are, off-policy too, those with GRPO's own ratios and clip. Advantages
    that differ in their scale alone are the same, too, where every group with a signal has the same rewards: one
    candidate is the target, and the others are not. Nothing is said of users' functions.
    """
    recipe = RECIPES.get(config.objective)
    if recipe is None or not recipe.rewarded or recipe.format or recipe.behaviour == "gbpo":
        return None
    full = completed(config)
    values = 0 if full.environment == "next_item" else full.page_size  # log-probabilities of a candidate; 0: its codes
    same_ratio = values == 1 or full.ratio == "token"
    same_clip = recipe.behaviour == "stored" and recipe.clipped and full.clip_high in (0, full.clip)
    if full.refills or not (on_policy(full) or (same_ratio and same_clip)):
        return None
    scaled = full.advantage != RECIPES["grpo"].advantage
    if scaled and not _differs_in_scale(full):
        return None
    if config.objective == "grpo" and full.ratio == "token" and not scaled:
        return None
    return _warning(full, values, scaled)


def _differs_in_scale(config: RlConfig) -> bool:
    """Whether the advantages are those of ``group_standardised`` times a number, the same for all groups."""
    if config.advantage == "per_component" and len(config.rewards) == 1:
        return True  # the one term, standardised, over the spread of the rollout
    rewards = [(term.name, bool(term.args.get("any_positive"))) for term in config.rewards]
    if rewards != [("rule", False)] or config.environment != "next_item":
        return False
    same = {"group_centred", "batch_standardised", "leave_one_out"}
    if config.mode == "stochastic_beam":  # with a baseline of its own
        same.remove("leave_one_out")
    return config.advantage in same and config.mode in ("beam", "stochastic_beam", "free")


def _warning(config: RlConfig, values: int, scaled: bool) -> str:
    recipe = RECIPES[config.objective]
    if on_policy(config):
        why = (
            "each rollout is learned from once, by the weights that drew it (rl.epochs = 1, rl.minibatch = "
            f"{config.minibatch}, rl.staleness = 0), so every ratio is 1 up to rounding and nothing is clipped or "
            "bounded"
        )
        remedy = "Set rl.epochs above 1, rl.minibatch below rl.contexts_per_step or rl.staleness above 0"
    elif values == 1:
        why = "a page of one item has one ratio, whatever rl.ratio says, and the clip is GRPO's"
        remedy = "Set rl.page_size above 1"
    else:
        why = "its ratios and its clip are GRPO's, and so are its advantages but for their scale"
        remedy = "Take another rl.ratio or rl.advantage"
    factors = []
    if values != 1 and (config.ratio == "sequence" or (config.ratio == "token" and recipe.normaliser == "constant")):
        factors.append(f"times the {f'{values} items of a page' if values else 'codes of a candidate'}")
    if scaled:
        shape = "of one term" if config.advantage == "per_component" else "of one hit a group, where no SID is shared,"
        factors.append(f"times a number, because advantages {config.advantage!r} {shape} differ in scale alone")
        remedy += ", or take a reward of more than one term or value"
    gradient = "that of 'grpo'" + (f" with rl.nll_weight = {config.nll_weight:g}" if config.nll_weight else "")
    return (
        f"warning: objective {config.objective!r} cannot differ from GRPO here: {why}. Its policy gradient is "
        f"{', '.join([gradient, *factors])}. {remedy}"
    )
