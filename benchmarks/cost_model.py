"""Seconds of an RL iteration on a cluster, from tokens, operations and bytes: arithmetic alone, nothing is measured.

Counted are the tokens that this package feeds: a prompt once and ``G * (L - 1)`` codes behind it, without what the trie
makes certain and prefixes that candidates share, which make it less. Left out: evaluation, checkpoints, stragglers and
failures. ``projection`` prints the tables; ``scaling`` compares the counts with a real iteration's.

Symbols: N weights of a model, B contexts, P prompt tokens, G candidates, L levels.
"""

import math
from dataclasses import dataclass, field
from typing import Any

DRAWING = ("rollouts", "weights in")
"""Parts of an iteration that are the runners'."""
SHEET, ASSUMED = "data sheet", "assumed"
HERE = "measured by `scaling.py` on a small machine without GPUs, rounded to the slow side"


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model of Llama's family; norms and biases are not counted."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True

    @property
    def key_value(self) -> int:
        """Weights of a block's key and value projections."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def block(self) -> int:
        """Weights of a block."""
        return 2 * self.hidden * self.heads * self.head_dim + self.key_value + 3 * self.hidden * self.inner

    @property
    def weights(self) -> int:
        """N: all weights, tied ones once."""
        return self.layers * self.block + self.vocabulary * self.hidden * (1 if self.tied else 2)


SMALL = Decoder("0.5B", 24, 896, 4864, 14, 2, 64, 151_936)
LARGE = Decoder("7B", 28, 3584, 18_944, 28, 4, 128, 152_064, tied=False)
"""The shapes of Qwen2.5-0.5B and Qwen2.5-7B."""


@dataclass(frozen=True)
class Workload:
    """One iteration: one rollout and one optimiser step on all of it."""

    contexts: int = 8192
    prompt: int = 256
    group: int = 16
    levels: int = 3
    codes: int = 256
    reference: bool = True  # a KL term reads a frozen copy, too
    chunk: int = 64  # contexts rolled out at once
    tokens_per_pass: int = 4096  # rl.tokens_per_microbatch

    @property
    def branches(self) -> int:
        """Tokens behind a prompt."""
        return self.group * (self.levels - 1)

    @property
    def tokens(self) -> int:
        """Tokens a context, P + G * (L - 1)."""
        return self.prompt + self.branches

    @property
    def usual_tokens(self) -> int:
        """Tokens a context where every candidate has a prompt of its own, G * (P + L - 1)."""
        return self.group * (self.prompt + self.levels - 1)

    @property
    def group_bytes(self) -> int:
        """Bytes of one row of a ``GroupBatch`` with one target: int64 ids, float32 numbers, bool validity."""
        items = (self.prompt - 1) // self.levels
        return 8 * (items + 1 + self.group * self.levels + 2) + self.group * (4 * self.levels + 4 + 4 + 1)


def assumption(value: float, text: str, source: str) -> Any:
    """A field of ``Cluster`` with what it means and where it comes from."""
    return field(default=value, metadata={"text": text, "source": source})


@dataclass(frozen=True)
class Cluster:
    """What is known or assumed of the machines. Bytes and operations a second unless said otherwise."""

    peak: float = assumption(989e12, "operations a second, bf16 dense, H100 and H200 SXM", SHEET)
    memory: float = assumption(141e9, "bytes of GPU memory (H200; H100: 80e9)", SHEET)
    hbm: float = assumption(4.8e12, "bytes a second of GPU memory (H200; H100: 3.35e12)", SHEET)
    node: int = assumption(8, "GPUs of a node", SHEET)
    nvlink: float = assumption(450e9, "bytes a second and direction between GPUs of a node", SHEET)
    network: float = assumption(50e9, "bytes a second and direction of each GPU to other nodes (400 Gb/s)", SHEET)
    pcie: float = assumption(25e9, "bytes a second between a GPU and its host", ASSUMED)
    mfu_update: float = assumption(0.4, "share of the peak in forward and backward passes (MFU)", ASSUMED)
    mfu_rollout: float = assumption(0.3, "share of the peak in rollouts", ASSUMED)
    busy: float = assumption(0.7, "share of `nvlink`, `network` and `hbm` that is reached", ASSUMED)
    kernels: float = assumption(40, "kernels a layer and pass, none of them fused or captured in a graph", ASSUMED)
    kernel: float = assumption(5e-6, "seconds to start a kernel", ASSUMED)
    hop: float = assumption(20e-6, "seconds of latency a step of a collective", ASSUMED)
    bucket: float = assumption(25e6, "bytes of gradients exchanged at once", "DDP's default")
    request: float = assumption(1e-4, "seconds of a vLLM engine's host work a request", ASSUMED)
    host_link: float = assumption(5e9, "bytes a second of Ray's object store from node to node", ASSUMED)
    hand: float = assumption(5e8, "bytes a second of weights from a learner to Ray's object store", HERE)
    take: float = assumption(5e8, "bytes a second of weights from the object store of a node to its runners", HERE)
    pickle: float = assumption(1e9, "bytes a second at which the driver hands out and takes in groups", HERE)
    call: float = assumption(5e-4, "seconds of the driver for each call of a runner or learner", HERE)
    weight_bytes: int = assumption(4, "bytes of a weight as it is sent (float32 masters)", "`agents/student.py`")
    full: float = assumption(0.9, "share of the memory that a replica may fill; beyond it is sharded", ASSUMED)


def forward_flops(model: Decoder, prompt: int, branches: int, codes: int) -> float:
    """Operations of a forward pass on one context, two for each multiplication of matrices.

    Of a prompt's last block only keys, values and the newest token are computed; logits are those of a level's codes.
    Attention is counted without the half that a causal mask leaves out.
    """
    passed = (model.layers - 1) * prompt + 1 + model.layers * branches
    projected = passed * model.block + (prompt - 1) * model.key_value
    seen = (model.layers - 1) * prompt * prompt + prompt + model.layers * branches * prompt
    return 2.0 * (projected + 2 * model.heads * model.head_dim * seen + (1 + branches) * model.hidden * codes)


def activation_bytes(model: Decoder, size: int, checkpointing: bool) -> float:
    """Bytes a token that a forward pass keeps for the backward pass, in numbers of ``size`` bytes.

    A block keeps six numbers a hidden unit (inputs and outputs of its norms), six a unit of the query heads and five a
    unit of the key heads (projected, normed, turned, read), four an inner unit. With checkpointing each block keeps its
    input alone, and one block at a time everything.
    """
    heads = model.head_dim * (6 * model.heads + 5 * model.kv_heads)
    block = size * (6 * model.hidden + heads + 4 * model.inner)
    return model.layers * model.hidden * size + block if checkpointing else model.layers * block


@dataclass(frozen=True)
class Plan:
    """A model on a cluster: where it is held, and what each part of an iteration takes.

    Replicas (RLlib, DDP) where masters, gradients, Adam's moments and activations leave room on one GPU; else shards
    over all learners (``agents/fsdp.py``), which gather the weights in bf16 before a rollout and keep them until the
    last backward pass.
    """

    model: Decoder
    work: Workload
    cluster: Cluster

    @property
    def sharded(self) -> bool:
        """Whether one GPU is too small to train the model."""
        return self._replica_bytes() > self.cluster.full * self.cluster.memory

    def gpu_bytes(self, gpus: int) -> float:
        """Most bytes on one of ``gpus`` GPUs that learn."""
        return self._shard_bytes(gpus) if self.sharded else self._replica_bytes()

    def _replica_bytes(self) -> float:
        """Masters, gradients and moments, DDP's buckets and the reference in float32, and bf16 weights of a pass."""
        numbers = 16 + 4 + (4 if self.work.reference else 0) + 2
        return numbers * self.model.weights + self.activations

    def _shard_bytes(self, gpus: int) -> float:
        """Shards in float32; weights and reference gathered in bf16; gradients as they add up, whole and in float32;
        and then the activations, or in their place the gradients of the newest pass in bf16."""
        references = 1 if self.work.reference else 0
        shard = (16 + 4 * references) * self.model.weights / gpus
        gathered = (2 + 2 * references + 4) * self.model.weights
        return shard + gathered + max(self.activations, 2 * self.model.weights)

    @property
    def activations(self) -> float:
        """Bytes of activations that a pass keeps, in bf16."""
        return self.work.tokens_per_pass * activation_bytes(self.model, 2, False)

    @property
    def flops(self) -> float:
        """Operations of one forward pass on one context."""
        return forward_flops(self.model, self.work.prompt, self.work.branches, self.work.codes)

    @property
    def passes(self) -> int:
        """Forward passes that an update costs: backward counts as two, then the reference."""
        return 3 + self.work.reference

    def rollout(self, gpus: int) -> float:
        """All contexts on ``gpus`` GPUs: operations, starting kernels or reading weights, whichever takes longest."""
        contexts = math.ceil(self.work.contexts / gpus)
        steps = math.ceil(contexts / self.work.chunk) * self.work.levels
        read = 2 * self.model.layers * self.model.block / (self.cluster.busy * self.cluster.hbm)
        return max(
            contexts * self.flops / (self.cluster.mfu_rollout * self.cluster.peak),
            steps * self._start(1),
            steps * read,
        )

    def requests(self, gpus: int) -> float:
        """Host work of vLLM engines: one request a prompt and one a candidate and further level."""
        return math.ceil(self.work.contexts / gpus) * (1 + self.work.branches) * self.cluster.request

    def passed(self, gpus: int) -> float:
        """Forward and backward on ``gpus`` learners: operations or starting kernels, whichever takes longer."""
        contexts = math.ceil(self.work.contexts / gpus)
        parts = math.ceil(contexts * self.work.tokens / self.work.tokens_per_pass)
        compute = contexts * self.passes * self.flops / (self.cluster.mfu_update * self.cluster.peak)
        return max(compute, parts * self._start(self.passes))

    def exchange(self, gpus: int) -> float:
        """Gradients (float32) averaged over all learners, or reduced to their shards, which is half of that.

        Nothing of it is taken to be hidden behind the backward pass.
        """
        size = 4 * self.model.weights
        return self._spread(size, gpus) * (1 if self.sharded else 2)

    def optimiser(self, gpus: int) -> float:
        """AdamW and the norm of the gradients: 32 bytes of memory a weight."""
        return 32 * self.model.weights / (gpus if self.sharded else 1) / (self.cluster.busy * self.cluster.hbm)

    def weights_out(self) -> float:
        """Weights from a learner to the object store, while the learners wait; shards are not sent."""
        if self.sharded:
            return 0.0
        return self._sent_bytes * (1 / self.cluster.pcie + 1 / self.cluster.hand)

    def weights_in(self, gpus: int) -> float:
        """Weights from the object store to ``gpus`` runners, from node to node in a binomial tree; shards, the
        reference's too, are gathered in bf16."""
        if self.sharded:
            return self._spread((4 if self.work.reference else 2) * self.model.weights, gpus)
        nodes = math.ceil(gpus / self.cluster.node)
        rounds = math.ceil(math.log2(nodes)) if nodes > 1 else 0
        return self._sent_bytes * (rounds / self.cluster.host_link + 1 / self.cluster.take + 1 / self.cluster.pcie)

    @property
    def _sent_bytes(self) -> float:
        return self.cluster.weight_bytes * self.model.weights

    def driver(self, runners: int, learners: int) -> float:
        """RLlib's one driver: calls, groups in from the runners and once out to all learners. Ranks of FSDP hand all
        groups to all others, and the driver calls each once."""
        size = self.work.contexts * self.work.group_bytes
        if self.sharded:
            return learners * self.cluster.call + size / self.cluster.pickle
        return (runners + learners) * self.cluster.call + 2 * size / self.cluster.pickle

    def _start(self, passes: int) -> float:
        return passes * self.model.layers * self.cluster.kernels * self.cluster.kernel

    def _spread(self, size: float, gpus: int) -> float:
        """Gathering or reducing ``size`` bytes over ``gpus`` GPUs: inside nodes, and a share a GPU between nodes."""
        node, nodes = min(gpus, self.cluster.node), math.ceil(gpus / self.cluster.node)
        within = (node - 1) / node * size / (self.cluster.busy * self.cluster.nvlink)
        between = (nodes - 1) / nodes * size / node / (self.cluster.busy * self.cluster.network)
        # Shards are sent in one piece, replicas in DDP's buckets.
        pieces = 1 if self.sharded else math.ceil(size / self.cluster.bucket)
        steps = math.ceil(math.log2(gpus)) if gpus > 1 else 0
        return within + between + pieces * steps * self.cluster.hop


@dataclass(frozen=True)
class Iteration:
    """Seconds of one iteration on ``gpus`` GPUs, of which ``runners`` roll out and ``learners`` learn; all of them do
    both where both numbers are that of the GPUs."""

    gpus: int
    runners: int
    learners: int
    parts: dict[str, float]
    seconds: float
    bottleneck: str


def in_turn(plan: Plan, gpus: int) -> Iteration:
    """Staleness 0: nothing runs beside anything else. Ranks of FSDP roll out and learn, each its share; RLlib's runners
    and learners have GPUs of their own, in the split that is fastest, and one side waits while the other works."""
    splits = [(gpus, gpus)] if plan.sharded else [(runners, gpus - runners) for runners in range(1, gpus)]
    return min((_one_by_one(plan, gpus, *split) for split in splits), key=lambda one: one.seconds)


def _one_by_one(plan: Plan, gpus: int, runners: int, learners: int) -> Iteration:
    parts = _parts(plan, runners, learners)
    return Iteration(gpus, runners, learners, parts, sum(parts.values()), max(parts, key=lambda name: parts[name]))


def overlapped(plan: Plan, gpus: int) -> Iteration:
    """Staleness 1: some GPUs roll out while the others learn; the split that is fastest.

    Runners take weights and draw the next iteration's groups; meanwhile the driver hands out groups, the learners learn
    and hand over their weights. More staleness evens out what varies, which nothing does here.
    """
    return min((_split(plan, gpus, runners) for runners in range(1, gpus)), key=lambda one: one.seconds)


def _split(plan: Plan, gpus: int, runners: int) -> Iteration:
    parts = _parts(plan, runners, gpus - runners)
    sides = [tuple(name for name in parts if name in DRAWING), tuple(name for name in parts if name not in DRAWING)]
    slowest = max(sides, key=lambda side: sum(parts[name] for name in side))
    seconds = sum(parts[name] for name in slowest)
    return Iteration(gpus, runners, gpus - runners, parts, seconds, max(slowest, key=lambda name: parts[name]))


def _parts(plan: Plan, runners: int, learners: int) -> dict[str, float]:
    return {
        "rollouts": plan.rollout(runners),
        "forward and backward": plan.passed(learners),
        "gradient exchange": plan.exchange(learners),
        "optimiser": plan.optimiser(learners),
        "weights out": plan.weights_out(),
        "weights in": plan.weights_in(runners),
        "driver": plan.driver(runners, learners),
    }
