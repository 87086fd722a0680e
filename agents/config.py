"""Settings of the policy, the supervised warm-up and the reinforcement learning stage."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PolicyConfig:
    """The language model: a local checkpoint, or a fresh one with random weights."""

    path: str = ""
    """Local Hugging Face directory of a causal LM; empty builds a fresh model from the fields below."""
    architecture: str = "qwen3"
    """model_type of transformers for a fresh model."""
    hidden_size: int = 64
    intermediate_size: int = 192
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    dropout: float = 0.0
    """Attention dropout during training of a fresh model."""


@dataclass(frozen=True)
class SftConfig:
    """Supervised next-SID prediction on whole histories."""

    epochs: int = 12
    batch: int = 32
    """Histories a step."""
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    eval_users: int = 500
    """Validation contexts scored after each epoch."""
    patience: int = 3
    """Epochs without a better validation NDCG@10 before training stops; the best epoch is kept."""


@dataclass(frozen=True)
class RewardConfig:
    """One term of the reward."""

    name: str = "rule"
    """Name in REWARDS, or package.module:name."""
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RlConfig:
    """Policy-gradient training on groups of candidates."""

    objective: str = "grpo"
    """Name in OBJECTIVES, or package.module:name."""
    advantage: str = ""
    """Name in ADVANTAGES, or package.module:name; empty takes the objective's own."""
    rewards: tuple[RewardConfig, ...] = (RewardConfig("rule"), RewardConfig("rank"))
    """Terms of the reward; none at all leaves only the NLL on the targets."""
    combine: str = "sum"
    """sum adds the weighted terms before the advantage is taken; each takes every term's advantage and adds those."""
    environment: str = "next_item"
    """What a candidate is and how it is answered: next_item (an item, the log), page (a page of items, the log) or
    session (a page of items, a simulated shopper; the return of the pages that follow counts)."""
    page_size: int = 5
    """Items S of a page, where a candidate is a page."""
    discount: float = 0.9
    """Factor on the reward of each page that follows, in sessions."""
    horizon: int = 6
    """Pages that are played out at most after a candidate page, in sessions."""
    warm_pages: int = 3
    """Pages of the logging recommender that a shopper has seen before a session starts."""
    group_size: int = 16
    """Candidates G a context."""
    engine: str = "torch"
    """What rolls candidates out: a name in ENGINES, or package.module:name."""
    engines: int = 1
    """vLLM engines that share a rollout worker's contexts."""
    tensor_parallel: int = 1
    """GPUs that each of them is spread over."""
    mode: str = "beam"
    """How candidates are drawn: beam, sample, top_k (independent draws from the top_k most probable codes of each
    level), dynamic (of 1.5 times as many draws those that hold the target and the most distinct items), stochastic_beam
    (without replacement, and weighted: with advantage leave_one_out the gradient is unbiased) or free (beam without the
    trie, for the format reward); pages are always drawn without replacement."""
    top_k: int = 8
    """Codes of each level that mode top_k draws from."""
    normalise: str = "trie"
    """Policy normalised over trie children (trie) or the whole vocabulary (vocab)."""
    steps: int = 200
    """Rollout-and-update iterations."""
    contexts_per_step: int = 64
    epochs: int = 1
    """Passes over each rollout."""
    minibatch: int = 0
    """Groups an optimiser step; 0 takes the whole rollout."""
    tokens_per_microbatch: int = 0
    """Tokens whose activations are held at once (about: trees are padded level by level): an optimiser step adds up the
    gradients of as many parts as that takes, of one group at least; 0 holds all of them. It changes no gradient."""
    parity_tolerance: float = 1e-3
    """Largest difference between a log-probability of the rollout and the same one in the first update after it, as a
    share of 1 + |log p|; a larger one is an error. 0 does not check. With less than float32 on either side 0.5 is
    allowed at least, and groups that older weights drew (staleness) are not compared."""
    chunk: int = 16
    """Contexts rolled out at once; fixed, so that results do not depend on the number of workers."""
    lr: float = 3e-4
    weight_decay: float = 0.0
    warmup_steps: int = 10
    max_grad_norm: float = 1.0
    ratio: str = ""
    """What the importance ratio is of: token (each code), sequence (the whole SID) or sequence_mean (the geometric mean
    of its codes'); empty takes the objective's own."""
    clip: float = 0.2
    """Clipping range epsilon of the importance ratio."""
    clip_high: float = 0.0
    """Range above 1 where it is another (dapo); 0 takes the objective's own, or clip."""
    ecpo_delta: float = 0.1
    """ECPO's delta > 0: with a negative advantage no ratio exceeds 1 + clip + delta."""
    kl_weight: float = 0.0
    """Weight beta of the KL term to the reference, which starts as the SFT policy."""
    kl_estimator: str = "k3"
    """k1 (pi - ref), k2 (half its square) or k3 (exp(ref - pi) - (ref - pi) - 1), on log-probabilities. The gradient
    of k1 is 0 on average: it measures a policy and does not hold it."""
    reference_every: int = 0
    """Iterations after which the reference takes the policy's weights; 0 keeps it as it was."""
    refills: int = 0
    """Times at most that groups without signal are replaced by groups of further contexts (dynamic sampling)."""
    staleness: int = 0
    """Iterations by which the weights of a rollout are behind those that learn from it: rollouts of that many
    iterations are drawn while others are learned from. 0 draws with the newest."""
    precision: str = "float32"
    """float32, or bfloat16 for the passes of the update while weights and optimiser stay in float32."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass instead of holding them."""
    lora_rank: int = 0
    """Rank of low-rank adapters (peft) that are trained instead of the weights; 0 trains the weights."""
    refusals: int = 3
    """Updates in a row that are refused because a loss or gradient is not finite before the run stops."""
    nll_weight: float = 0.0
    """Weight alpha of the negative log-likelihood of the targets D+."""
    eval_every: int = 50
    """Steps between validations; the best checkpoint by validation is kept."""
    eval_users: int = 500
    select_by: str = "ndcg@10"
    """Validation metric that picks the kept weights: reward, ndcg@10, or last (no selection)."""
    checkpoint_every: int = 25
    """Steps between resumable checkpoints."""
    backend: str = "rllib"
    """rllib, torch for the same loop without Ray, or fsdp for models beyond one GPU (Ray Train, weights sharded over
    rl.learners ranks)."""
    env_runners: int = 0
    """Remote rollout workers of RLlib; 0 rolls out in the driver."""
    learners: int = 0
    """Remote learners of RLlib; 0 learns in the driver."""
    device: str = "cpu"
    """cpu or cuda: where the policy learns and is rolled out. With cuda RLlib gives each remote learner and each remote
    env runner a GPU of its own; with engine vllm its engines have them instead of the env runners."""


@dataclass(frozen=True)
class LogConfig:
    """Where figures go; nothing leaves the machine unless wandb is set to online."""

    wandb: str = "offline"
    """offline, online or disabled."""
    project: str = "sidgym"
