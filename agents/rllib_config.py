"""The public way into RLlib: ``GRPOConfig``, which is used as RLlib's own configurations are.

    config = (
        GRPOConfig()
        .environment("SIDGym/NextItem-v0", env_config={"policy": "runs/demo/sft", "contexts": "contexts.npz"})
        .training(objective="ecpo", lr=tune.grid_search([1e-4, 3e-4]), rewards=["rule", "rank"])
        .env_runners(num_env_runners=8)
        .learners(num_learners=2, num_gpus_per_learner=1)
    )
    algorithm = config.build_algo()                               # or:
    tune.Tuner(config.algo_class, param_space=config).fit()

All objectives go through this one class. No environment is stepped: a group of candidates is rolled out and scored in
one go, by the functions that the environment of that name steps with. Left out: the algorithm (``rllib_algorithm``).
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.spaces.simplex import Simplex
from ray.util.debug import log_once

from sidgym.agents.config import RewardConfig, RlConfig
from sidgym.agents.recipes import check_objective, completed
from sidgym.agents.task import RlTask

ENVIRONMENTS = {"SIDGym/NextItem-v0": "next_item", "SIDGym/Page-v0": "page", "SIDGym/Session-v0": "session"}
"""Name of the environment -> ``RlConfig.environment``."""
ELSEWHERE = {
    "environment": ".environment(...)",
    "env_runners": ".env_runners(num_env_runners=...)",
    "learners": ".learners(num_learners=...)",
    "device": ".learners(num_gpus_per_learner=...) and .env_runners(num_gpus_per_env_runner=...)",
    "num_epochs": "epochs",
    "minibatch_size": "minibatch",
    "grad_clip": "max_grad_norm",
    "train_batch_size": "contexts_per_step",
    "train_batch_size_per_learner": "contexts_per_step",
    **dict.fromkeys(("backend", "steps", "eval_every", "eval_users", "select_by", "checkpoint_every"), ""),
}
"""Settings that ``.training`` does not take, and what stands for them; "" for those of ``rl.train_rl``'s loop."""
RLLIB_OWN = ("model", "optimizer")
"""Settings that RLlib hands to ``.training`` when it reads a configuration back from a dictionary."""


class NoSpace(Simplex):
    """Stands where RLlib wants the space of an environment; nothing reads it."""

    def __init__(self) -> None:
        super().__init__(shape=(1,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoSpace)


class GRPOConfig(AlgorithmConfig):
    """Settings of ``GroupAlgorithm``: those of ``RlConfig``, and what to learn from."""

    def __init__(self, algo_class: type | None = None):
        from sidgym.agents.rllib_algorithm import GroupAlgorithm, GroupEnvRunner

        super().__init__(algo_class=algo_class or GroupAlgorithm)
        self.rl: dict[str, Any] = {}  # fields of RlConfig that differ from their defaults
        self.warns = True  # says so where the objective cannot make a difference
        super().environment(observation_space=NoSpace(), action_space=NoSpace(), is_atari=False)
        self.env_runners(
            env_runner_cls=GroupEnvRunner,
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
            sample_timeout_s=600.0,  # a whole rollout; who takes longer is taken to hang
        )
        self.learners(add_default_connectors_to_learner_pipeline=False)
        self.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=1.0,
        )
        self.debugging(log_level="WARN", log_sys_usage=False)
        # Otherwise every forward pass would send the buffers of the policy from learner to learner.
        self.torch_ddp_kwargs = {"broadcast_buffers": False}

    def environment(  # type: ignore[override]
        self, env: Any = None, *, env_config: Mapping[str, Any] | None = None, **settings: Any
    ) -> "GRPOConfig":
        """What is learned from.

        ``env`` is a name in ``ENVIRONMENTS``. ``env_config`` holds fields of ``task.RlTask`` as paths: ``policy`` (a
        checkpoint of SFT) and ``contexts`` (.npz of ``task.save_episodes``), and ``seed``, ``embeddings``,
        ``preference``, ``truth``, ``popularity``, ``data``, ``refused`` where they are wanted. Processes on other
        machines must find the paths, too. Raises ``ValueError`` for other names.
        """
        if env is not None:
            if isinstance(env, str) and env not in ENVIRONMENTS:
                raise ValueError(f"unknown environment {env!r}; known: {', '.join(ENVIRONMENTS)}")
            settings["env"] = env
        if env_config is not None:
            known = {field.name for field in fields(RlTask)} - {"config"}
            if unknown := sorted(set(env_config) - known):
                raise ValueError(f"unknown env_config {unknown[0]!r}; known: {', '.join(sorted(known))}")
            settings["env_config"] = dict(env_config)
        super().environment(**settings)
        return self

    def training(self, **settings: Any) -> "GRPOConfig":  # type: ignore[override]
        """Settings of ``RlConfig`` by name: ``objective``, ``lr``, ``clip``, ``group_size``, ``staleness`` ...

        ``rewards`` may hold names, mappings or ``RewardConfig``s. Any value may be one of Tune's search spaces. Raises
        ``ValueError`` for a name that is none, or that belongs elsewhere.
        """
        super().training(**{name: settings.pop(name) for name in RLLIB_OWN if name in settings})
        known = {field.name for field in fields(RlConfig)} - set(ELSEWHERE)
        for name in settings:
            if name in known:
                continue
            where = ELSEWHERE.get(name)
            if where is None:
                raise ValueError(f"unknown training setting {name!r}; known: {', '.join(sorted(known))}")
            raise ValueError(
                f".training({name}=...) is not for this algorithm; use {where}"
                if where
                else f".training({name}=...) is for the command line's loop; here the caller or Tune decides when to "
                "stop, validate and save"
            )
        self.rl = {**self.rl, **settings}
        return self

    def for_task(self, task: RlTask) -> "GRPOConfig":
        """All settings from ``task``; its config says how many workers there are and whether they have GPUs.

        For a caller who has warned already: nothing more is said of settings that make no difference.
        """
        names = {kind: name for name, kind in ENVIRONMENTS.items()}
        config, gpus = task.config, int(task.config.device == "cuda")
        if config.environment not in names:
            raise ValueError(f"unknown rl.environment {config.environment!r}; known: {', '.join(names)}")
        paths = {name: value for name, value in vars(task).items() if name != "config"}
        self.environment(names[config.environment], env_config=paths)
        # vLLM's engines have GPUs of their own; who asks them computes next to nothing.
        drawing = 0 if config.engine == "vllm" else gpus
        self.env_runners(num_env_runners=config.env_runners, num_gpus_per_env_runner=drawing)
        self.learners(num_learners=config.learners, num_gpus_per_learner=gpus)
        own = ("environment", "env_runners", "learners", "device", "backend")
        self.rl = {name: value for name, value in vars(config).items() if name not in own}
        self.warns = False
        return self

    @property
    def task(self) -> RlTask:
        """What workers and learners are built from. Raises ``ValueError`` where something is missing."""
        for name in ("policy", "contexts"):
            if not self.env_config.get(name):
                raise ValueError(
                    f"env_config has no {name!r}: call .environment(name, env_config={{'policy': checkpoint folder, "
                    "'contexts': .npz file}), or for_task(RlTask(...))"
                )
        paths = {**self.env_config, "seed": self.env_config.get("seed", self.seed or 0)}
        settings = dict(self.rl)
        if "rewards" in settings:
            settings["rewards"] = tuple(_reward(term) for term in settings["rewards"])
        config = RlConfig(
            **settings,
            environment=ENVIRONMENTS[self.env or "SIDGym/NextItem-v0"],
            env_runners=self.num_env_runners,
            learners=self.num_learners,
            device="cuda" if self.num_gpus_per_learner > 0 else "cpu",
        )
        return RlTask(**paths, config=completed(config))

    def get_default_learner_class(self) -> type[Learner]:
        from sidgym.agents.rllib_learner import GroupLearner

        return GroupLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from sidgym.agents.rllib_learner import GroupModule

        return RLModuleSpec(module_class=GroupModule, model_config={"task": self.task})

    def validate(self) -> None:
        """Raises ``ValueError`` for settings that RLlib or this algorithm cannot run."""
        # Counts as said: that this is the new API stack.
        log_once(f"{self.algo_class.__name__ if self.algo_class else ''}_on_new_api_stack")
        super().validate()
        config, learners = self.task.config, self.task.config.learners
        check_objective(config)
        for name in ("contexts_per_step", "chunk", "epochs"):
            if getattr(config, name) < 1:
                raise ValueError(f"rl.{name} must be at least 1, got {getattr(config, name)}")
        for name in ("contexts_per_step", "minibatch"):
            # Learners that take unequal numbers of groups would wait for each other for ever, or weigh them wrongly.
            if learners and getattr(config, name) % learners:
                raise ValueError(
                    f"rl.{name} must be a multiple of rl.learners = {learners}, got {getattr(config, name)}"
                )
        if self.evaluation_interval and not self.custom_evaluation_function:
            raise ValueError(
                "evaluation_interval needs a custom_evaluation_function: there are no episodes to evaluate. "
                "sidgym.agents.rl.validate judges a policy"
            )


def _reward(term: Any) -> RewardConfig:
    if isinstance(term, RewardConfig):
        return term
    return RewardConfig(term) if isinstance(term, str) else RewardConfig(**term)
