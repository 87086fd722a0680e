"""The settings of a whole run as one frozen record, and the checks on its values.

One section per package below, and what belongs to the run itself. Left out: reading and writing (``config``), and which
component names exist, because ``resolve`` answers that where they are used and a check here would load every heavy
module.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sidgym.agents.config import LogConfig, PolicyConfig, RlConfig, ScoringConfig, SftConfig
from sidgym.envs.config import DataConfig, EvalConfig
from sidgym.launch.stages import content_hash
from sidgym.sid.config import SidConfig


class ConfigError(ValueError):
    """A configuration that cannot be read, or whose values cannot work."""


@dataclass(frozen=True)
class PreferenceConfig:
    """The model of user preference that some rewards read; trained on the users of the SFT and RL stages only."""

    enabled: bool = False
    kind: str = "din"
    """Name in PREFERENCES (din, sim, pscore, sasrec, duration_aware), or package.module:name."""
    epochs: int = 0
    """Passes at most; 0 takes 8 for din and for other kinds what they say themselves."""
    settings: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Further settings of the kind, such as { hidden = 64 } for its fit; on the command line --preference-settings."""
    relevance: str = "text"
    """What the gate of the reward 'gated' asks: text, prefix, learned (a classifier fitted beside the model), or
    package.module:name. A reward may say otherwise in its args."""
    tau: float | Literal["auto"] = "auto"
    """Threshold of that gate where a reward does not say it; auto chooses it on validation users."""
    keep: float = 0.98
    """Share of what validation users took next that a threshold chosen by auto lets pass."""
    scoring: ScoringConfig = field(default_factory=ScoringConfig)


@dataclass(frozen=True)
class RunConfig:
    """Everything that one run depends on."""

    name: str
    """Name of the run; its results go to the folder out/name."""
    out: str = "runs"
    """Folder that holds the runs."""
    seed: int = 0
    """Root of every random stream of the run."""
    split_seed: int | Literal["seed"] = "seed"
    """Seed that the log is cut with; "seed" takes the run's own. A number cuts it alike for several seeds."""
    threads: int = 1
    """Threads of each process; results are reproduced bit by bit with the same number only."""
    workers: int = 2
    """Stages trained or evaluated at the same time, each in its own process; it changes no result."""
    address: str = ""
    """Ray cluster that RL connects to: auto, or host:port of its head; empty starts Ray on this machine. It changes no
    result, but every node must see the run's folder under the same path."""
    data: DataConfig = field(default_factory=DataConfig)
    sid: SidConfig = field(default_factory=SidConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    arms: Annotated[dict[str, RlConfig], tyro.conf.Suppress] = field(default_factory=dict)
    """Control arms by name; each is trained from the same SFT policy as rl."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def directory(self) -> Path:
        """Folder of the run."""
        return Path(self.out) / self.name


def arms_of(config: RunConfig) -> dict[str, RlConfig]:
    """The RL arms by stage name: ``rl`` and ``rl_<name>`` for every control."""
    return {"rl": config.rl, **{f"rl_{name}": rl for name, rl in config.arms.items()}}


CHOICES: Mapping[str, tuple[str, ...]] = {
    "data.split": ("by_user", "leave_one_out", "chronological"),
    "data.repeats": ("keep", "exact", "first"),
    "data.domain": ("video", "goods", "ad"),
    "sft.template": ("plain", "chat"),
    "sft.normalise": ("vocab", "sid"),
    "sft.page_order": ("strongest", "logged", "random"),
    "sft.precision": ("float32", "bfloat16"),
    "sft.device": ("cpu", "cuda"),
    "rl.mode": ("beam", "sample", "top_k", "dynamic", "stochastic_beam", "cut", "free"),
    "rl.ratio": ("", "token", "sequence", "sequence_mean"),
    "rl.kl_estimator": ("k1", "k2", "k3"),
    "rl.precision": ("float32", "bfloat16"),
    "rl.device": ("cpu", "cuda"),
    "rl.combine": ("sum", "each"),
    "rl.environment": ("next_item", "page", "session"),
    "rl.normalise": ("trie", "vocab"),
    "rl.select_by": ("reward", "ndcg@10", "last"),
    "rl.backend": ("rllib", "torch", "fsdp"),
    "log.wandb": ("offline", "online", "disabled"),
}
"""Fields that take one of a few words."""

MAY_BE_ZERO = frozenset(
    {
        "seed",
        "split_seed",
        "data.min_events",
        "data.max_events",
        "data.title_words",
        "data.min_rating",
        "data.max_malformed",
        "policy.dropout",
        "sft.epochs",
        "sft.weight_decay",
        "sft.warmup_steps",
        "sft.tokens_per_batch",
        "sft.tokens_per_microbatch",
        "sft.token_warmup_steps",
        "sft.lora_rank",
        "sft.eval_every",
        "sft.checkpoint_every",
        "sft.rsft.drop",
        "rl.steps",
        "rl.discount",
        "rl.horizon",
        "rl.warm_pages",
        "rl.minibatch",
        "rl.tokens_per_microbatch",
        "rl.parity_tolerance",
        "rl.clip_high",
        "rl.reference_every",
        "rl.refills",
        "rl.staleness",
        "rl.lora_rank",
        "rl.weight_decay",
        "rl.warmup_steps",
        "rl.kl_weight",
        "rl.nll_weight",
        "rl.entropy_weight",
        "rl.curriculum",
        "rl.env_runners",
        "rl.learners",
        "eval.max_users",
        "preference.epochs",
        "preference.scoring.cache",
        "preference.scoring.replicas",
        "preference.scoring.gpus",
    }
)
"""Numbers where 0 means none or all. Every other number is greater than zero, those of ``ANY_SIGN`` excepted."""
ANY_SIGN = ("rewards.weight", "preference.tau")
"""Ends of the names of numbers that may be anything finite."""


def validate(config: RunConfig, source: str = "configuration") -> None:
    """Raise ``ConfigError`` that lists every value that cannot work; ``source`` says where the values come from."""
    faults = [*_run_faults(config), *_value_faults(config), *_share_faults(config.data), *_policy_faults(config.policy)]
    if not config.eval.ks or config.eval.beam < max(config.eval.ks):
        faults.append(f"eval.beam: expected at least the largest of eval.ks {config.eval.ks}, got {config.eval.beam}")
    for where, rl in [("rl", config.rl), *((f"arms.{name}", arm) for name, arm in config.arms.items())]:
        rl = _completed(rl)
        faults.extend(_rl_faults(rl, where))
        faults.extend(_page_faults(rl, where, config.data))
        if config.policy.merge_items and rl.engine in ("hf", "vllm"):
            faults.append(
                f"{where}.engine: {rl.engine!r} takes prompts as token ids and cannot read merged items; use 'torch', "
                "or policy.merge_items = false"
            )
    if faults:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


TAKEN = frozenset(
    "rl sft sft_all sft_reranked random popularity cooccurrence oracle bound baselines".split()  # noqa: SIM905
)
"""Names of systems that a control arm cannot have."""


def _run_faults(config: RunConfig) -> Iterator[str]:
    if not re.fullmatch(r"|auto|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", config.address):
        yield (
            "address: expected auto or host:port of the head of a Ray cluster (ray:// is not one: run on a node of the "
            f"cluster, or through 'ray job submit'), got {config.address!r}"
        )
    for arm in sorted(TAKEN & set(config.arms)):
        yield f"arms.{arm}: the name is that of another system in the tables; choose one of your own"
    for where, name in [("name", config.name), *(("arms", arm) for arm in config.arms)]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            yield f"{where}: expected letters, digits, '.', '_' and '-' (it becomes a folder's name), got {name!r}"
        elif where == "arms" and "." in name:
            yield f"arms: expected a name without '.', which separates keys on the command line; got {name!r}"


def _values(record: Any, where: str, key: str) -> Iterator[tuple[str, str, Any]]:
    """Each value in a record: the dotted key to report, the key in the tables of rules (arms follow rl), the value."""
    for f in fields(record):
        value = getattr(record, f.name)
        here, rule = f"{where}{f.name}", f"{key}{f.name}"
        if f.name == "arms":
            for name, arm in value.items():
                yield from _values(arm, f"arms.{name}.", "rl.")
        elif is_dataclass(value):
            yield from _values(value, f"{here}.", f"{rule}.")
        elif isinstance(value, tuple):
            for i, entry in enumerate(value):
                if is_dataclass(entry):
                    yield from _values(entry, f"{here}[{i}].", f"{rule}.")
                else:
                    yield f"{here}[{i}]", rule, entry
        else:
            yield here, rule, value


def _value_faults(config: RunConfig) -> Iterator[str]:
    for where, key, value in _values(config, "", ""):
        if key in CHOICES and value not in CHOICES[key]:
            yield f"{where}: expected one of {', '.join(CHOICES[key])}; got {value!r}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            yield f"{where}: expected a finite number, got {value}"
        elif not key.endswith(ANY_SIGN) and (value < 0 or (value == 0 and key not in MAY_BE_ZERO)):
            yield f"{where}: expected {'at least 0' if key in MAY_BE_ZERO else 'more than 0'}, got {value}"


def _share_faults(data: DataConfig) -> Iterator[str]:
    if data.split == "leave_one_out":  # the last two events of every user are held out; only the RL share is a choice
        if data.rl_share > 1:
            yield f"data.rl_share: expected at most 1, got {data.rl_share}"
        return
    total = data.rl_share + data.valid_share + data.test_share
    if total >= 1:
        yield (
            "data: expected rl_share + valid_share + test_share below 1, so that something is left for SFT; got "
            f"{data.rl_share} + {data.valid_share} + {data.test_share} = {total:g}"
        )


def _policy_faults(policy: PolicyConfig) -> Iterator[str]:
    if policy.dropout >= 1:
        yield f"policy.dropout: expected less than 1, got {policy.dropout}"
    if policy.path:  # the checkpoint brings its own shape
        return
    for name, whole, part in (("hidden_size", "hidden_size", "heads"), ("heads", "heads", "kv_heads")):
        number, divisor = getattr(policy, whole), getattr(policy, part)
        if divisor > 0 and number % divisor:
            yield f"policy.{name}: expected a multiple of policy.{part} = {divisor}, got {number}"


def _completed(rl: RlConfig) -> RlConfig:
    """The settings with what the objective brings along; as they are for one that cannot be found, which is told where
    it is used."""
    from sidgym.agents.recipes import completed

    try:
        return completed(rl)
    except ValueError:
        return rl


def _rl_faults(rl: RlConfig, where: str) -> Iterator[str]:
    terms = [(f"{where}.rewards[{i}].name", term.name) for i, term in enumerate(rl.rewards)]
    chosen = [(f"{where}.advantage", rl.advantage)] if rl.advantage else []
    for key, name in [(f"{where}.objective", rl.objective), *chosen, *terms]:
        if not re.fullmatch(r"\w+|[\w.]+:\w+", name):
            yield f"{key}: expected a registered name or package.module:name, got {name!r}"
    if rl.engine in ("torch", "hf") and (rl.engines, rl.tensor_parallel) != (1, 1):
        yield f"{where}.engines, {where}.tensor_parallel: expected 1 with engine {rl.engine!r}; they are vLLM's"
    if rl.discount > 1:
        yield f"{where}.discount: expected between 0 and 1, got {rl.discount:g}"
    pairs = rl.objective in ("s_dpo", "list_ndcg")  # which compares candidates with targets, and needs no rewards
    if rl.rewards and rl.group_size < 2 and rl.nll_weight <= 0 and ":" not in rl.advantage and not pairs:
        yield f"{where}.group_size: a group of one has no advantage, so nothing would be learned; take at least 2"
    if rl.objective == "nll" and rl.nll_weight <= 0:
        yield f"{where}: objective 'nll' with nll_weight {rl.nll_weight:g} would learn nothing; set nll_weight above 0"
    if not rl.rewards and rl.nll_weight <= 0 and not pairs:
        yield f"{where}: expected at least one reward or an nll_weight above 0, got neither: nothing would be learned"
    if rl.minibatch > rl.contexts_per_step:
        yield f"{where}.minibatch: expected at most contexts_per_step = {rl.contexts_per_step}, got {rl.minibatch}"


def _page_faults(rl: RlConfig, where: str, data: DataConfig) -> Iterator[str]:
    if rl.mode == "stochastic_beam" and rl.normalise != "trie":
        yield f"{where}.normalise: stochastic_beam draws from the SIDs of the trie; take 'trie', got {rl.normalise!r}"
    if rl.mode == "cut":
        for name, wanted in (("environment", "next_item"), ("normalise", "trie"), ("engine", "torch")):
            if getattr(rl, name) != wanted:
                got = getattr(rl, name)
                yield f"{where}.{name}: mode 'cut' weighs nodes of the trie; expected {wanted!r}, got {got!r}"
    if rl.environment == "session" and rl.nll_weight > 0:
        yield f"{where}.nll_weight: a session has no logged targets to be likely; expected 0, got {rl.nll_weight:g}"
    if rl.environment not in ("page", "session"):
        return
    if rl.mode == "free":
        yield (
            f"{where}.mode: a page is drawn through the trie, without replacement; mode 'free' goes with environment = "
            f"'next_item' only, got {rl.environment!r}"
        )
    if rl.normalise != "trie":
        yield f"{where}.normalise: a page is drawn through the trie; expected 'trie', got {rl.normalise!r}"
    if rl.environment == "session" and data.name != "simulator":
        yield (
            f"{where}.environment: 'session' needs shoppers that answer, which only data.name = 'simulator' has; got "
            f"data.name = {data.name!r}. Use 'page' or 'next_item' on a real log"
        )
    if data.name == "simulator" and rl.page_size >= data.items:
        yield f"{where}.page_size: expected fewer than the {data.items} items of the store, got {rl.page_size}"


def select_sections(config: RunConfig, sections: Sequence[str]) -> dict[str, Any]:
    """The chosen dotted fields (``"data"``, ``"seed"``, ``"arms.nll"``) as JSON values: the inputs of a stage.

    Raises ``ConfigError`` for a field or an arm that does not exist.
    """
    chosen: dict[str, Any] = {}
    for section in sections:
        value: Any = config
        for part in section.split("."):
            inside = value if isinstance(value, dict) else getattr(value, "__dict__", {})
            if part not in inside:
                raise ConfigError(f"no section {section!r} in the configuration; {part!r} is not in {list(inside)}")
            value = inside[part]
        chosen[section] = value if not is_dataclass(value) or isinstance(value, type) else asdict(value)
    return chosen


def config_hash(config: RunConfig, sections: Sequence[str]) -> str:
    """``content_hash`` of the chosen sections; see ``select_sections``."""
    return content_hash(select_sections(config, sections))
