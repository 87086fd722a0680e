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
    """Dropout while a fresh model is trained: of attention weights, and with gpt2, whose blocks have it, of embeddings
    and of what each block adds."""
    merge_items: bool = False
    """In prompts the L code embeddings of an item become one by a linear layer (GenRec's Token Merger); answers stay
    code by code. Engine torch only."""
    text_vocabulary: int = 2048
    """Tokens that a fresh model learns from the catalogue's texts where a task holds text; its SIDs come on top."""


@dataclass(frozen=True)
class RewardConfig:
    """One term of the reward."""

    name: str = "rule"
    """Name in REWARDS, or package.module:name."""
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RsftConfig:
    """Rejection-sampling fine-tuning (OneRec-V1): supervised training goes on without the worst logged pages.

    The stage keeps RSFT's best weights by validation, also where the warm-up's were better; it prints both figures.
    """

    drop: float = 0.0
    """Share of the logged pages something was chosen on that is dropped, those of the lowest mean reward (OneRec-V1:
    0.5, of all exposures); 0: no RSFT."""
    rewards: tuple[RewardConfig, ...] = (RewardConfig("engagement"),)
    """What a logged page is worth: the sum of these terms, averaged over its items."""
    epochs: int = 2
    lr: float = 3e-4


@dataclass(frozen=True)
class SftConfig:
    """Supervised training: next-SID prediction on whole histories, and tasks over text beside it."""

    tasks: tuple[str, ...] = ("retrieval",)
    """Names in TASKS, or package.module:name, each with its share of the examples, such as retrieval:0.66 caption:0.05.
    An epoch shows every example of the first one; without any share each task shows all that it has."""
    template: str = "plain"
    """plain, or chat: the tokenizer's own chat template, for instruct checkpoints."""
    labels: str = ""
    """What task summary answers: categories (counted in SFT's log), or a file of JSON lines with text and user, the
    run's own number of a user and not the data set's: column user of data/interactions.parquet, whose column item
    counts the rows of data/catalogue.parquet, says who it is."""
    text: str = ""
    """What task text reads: a text file, documents separated by empty lines."""
    page_order: str = "strongest"
    """Order of a page's items in tasks page_wise and point_wise: strongest (orders, clicks, what was only shown),
    logged (the places on the page) or random (anew each epoch)."""
    page_exposed: bool = False
    """Tasks page_wise and point_wise: items that were shown and ignored are targets too, D of GenRec eq. 3; else D+."""
    max_text_tokens: int = 128
    """Tokens that a single text (a title, a description) is cut to, which is then not taught to end there; documents
    are cut into pieces of as many, all of which are read. A task's own words are never cut; 0 cuts nothing."""
    packed: bool = False
    """Passes without padding over whole examples. So is whatever reads text; histories alone are padded unless this is
    set, which changes results in their last bits."""
    epochs: int = 12
    batch: int = 32
    """Histories, or examples, a step."""
    tokens_per_batch: int = 0
    """Tokens a step, filled with whole examples (packed only); 0 counts examples."""
    tokens_per_microbatch: int = 0
    """Tokens whose activations are held at once: a step adds up the gradients of as many parts as that takes; 0 holds
    all of them."""
    normalise: str = "vocab"
    """Softmax of the loss where the target is a SID: over the whole vocabulary (vocab), which also teaches what is
    legal, or over the SID tokens (sid), for large vocabularies; packed only."""
    precision: str = "float32"
    """float32, or bfloat16 for the passes while weights and optimiser stay in float32."""
    device: str = "cpu"
    """cpu or cuda."""
    token_warmup_steps: int = 0
    """First steps in which the rows of the SID tokens alone are trained, with the item merger where there is one.
    Behind them the learning rate rises anew over warmup_steps."""
    frozen: bool = False
    """Trains the rows of the SID tokens alone to the end, with the item merger where there is one."""
    lora_rank: int = 0
    """Rank of low-rank adapters (peft) that are trained instead of the weights, with the rows of the SID tokens; 0
    trains the weights."""
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    eval_users: int = 500
    """Validation contexts scored after each epoch, evenly spaced; 0 takes all."""
    eval_every: int = 0
    """Steps between validations; 0 validates after each epoch."""
    patience: int = 3
    """Validations (epochs) without a better NDCG@10 before training stops; the weights of the best are kept."""
    checkpoint_every: int = 0
    """Steps between resumable checkpoints; 0 writes none, and a killed stage begins anew."""
    rsft: RsftConfig = field(default_factory=RsftConfig)


@dataclass(frozen=True)
class RlConfig:
    """Policy-gradient training on groups of candidates."""

    objective: str = "grpo"
    """Name in OBJECTIVES, or package.module:name."""
    tasks: tuple[str, ...] = ("retrieval",)
    """What contexts are asked: retrieval (their histories), or shares of tasks that answer with a SID, such as
    retrieval:0.7 title_to_sid:0.2 titles_to_sid:0.1."""
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
    (without replacement, and weighted: with advantage leave_one_out the gradient is unbiased), cut (no draw: all nodes
    of the top of the trie, weighted by their probability) or free (beam without the trie, for the format reward); pages
    are always drawn without replacement."""
    top_k: int = 8
    """Codes of each level that mode top_k draws from."""
    cut_levels: int = 1
    """Levels of the trie that mode cut looks at: it goes on below the group_size most probable nodes of each."""
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
    list_temperature: float = 1.0
    """Objective list_ndcg: nats of difference over which two places change gradually; 1 is the policy's own spread."""
    entropy_weight: float = 0.0
    """Weight of the mean entropy of the codes of the candidates, nats a code (the logged ``entropy`` is that of a whole
    SID), which is added to what is maximised."""
    curriculum: float = 0.0
    """Power of the chance of a hit, as the first policy has it, by which contexts are drawn; it falls to 0 over the
    run. 0 takes all contexts in turn."""
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
class ScoringConfig:
    """How RL asks the preference model. ``cache`` and ``replicas`` above 0 change no result; no cache at all and
    a GPU may change the last bit of a score."""

    cache: int = 1 << 20
    """Scores that each process remembers at most, 12 bytes each; 0 asks the model for everything anew."""
    replicas: int = 0
    """Ray actors that hold the model and share the work; 0 holds it in every process that rolls out."""
    gpus: float = 0.0
    """GPU share of each actor (0.25: four on one GPU); 0 scores on the CPU."""


@dataclass(frozen=True)
class LogConfig:
    """Where figures go; nothing leaves the machine unless wandb is set to online."""

    wandb: str = "offline"
    """offline, online or disabled."""
    project: str = "sidgym"
