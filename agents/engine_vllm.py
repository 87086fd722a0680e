"""Rollouts by vLLM: our own beam loop, one token a step, over its offline engine with prefix caching.

Every step asks vLLM for the log-probabilities of the codes that the trie allows, by ``logprob_token_ids``: no grammar,
no logits processor, so the same code serves its CPU and CUDA runners. vLLM holds a copy of the weights.
``load_weights`` replaces it, empties the prefix cache and compares log-probabilities with the policy's, because a push
that misses a weight or leaves old keys in the cache gives wrong numbers without a word.

By default vLLM runs in Ray actors: it wants environment variables before torch is imported and replaces functions of
torch. Left out: choosing the candidates (``tree_search``, ``asked_search``); mode ``free``, as vLLM gives a request at
most 128 log-probabilities of one's choice; and equal bits from one run to the next, as what the prefix cache holds can
change the last ones.
"""

import importlib.util
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sidgym.agents.asked_search import AskedSearch, AskedStochasticBeams
from sidgym.agents.checkpoint import write_policy
from sidgym.agents.engine_base import ChunkedEngine, make_rollouts
from sidgym.agents.merger import refuse_merged
from sidgym.agents.ray_start import start_ray_for_engines
from sidgym.agents.tree_search import Request
from sidgym.agents.vllm_runners import (
    MOST_IDS,
    ActorRunner,
    Runner,
    VllmRunner,
    WeightsMismatch,
)
from sidgym.envs.records import Episodes, Rollouts

MODES = ("beam", "sample", "top_k", "dynamic", "stochastic_beam")
TOLERANCE = {torch.float32: 5e-4}
"""Largest difference of a log-probability after a push; ``COARSE`` for other number formats."""
COARSE = 0.2  # so wide that a push of a small step which is lost goes unnoticed in half precision
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Attention head sizes that vLLM 0.32 computes on a CPU."""
PROBE_BLOCKS = 2
"""Whole cache blocks of the prompt that is compared after a push: stale ones must be among them."""
BLOCK = 32
"""Tokens of a cache block; vLLM's CPU kernels want a multiple of 32."""


@dataclass
class VllmEngine(ChunkedEngine):
    """vLLM as an engine; ``version`` names the weights, ``chunk`` contexts are asked for at once.

    vLLM starts with the first rollout, so an engine that is only held in reserve costs nothing.

    ``engines`` vLLM engines take whole chunks in turn, each on ``tensor_parallel_size`` of Ray's GPUs. ``in_process``
    runs one in this process instead, which changes torch here (``vllm_runners``). ``runners`` takes
    running ones over, of a model with the same shape and vocabulary. ``options`` go to ``vllm.LLM``. A prompt and its
    candidate hold at most ``max_length`` tokens.
    """

    engines: int = 1
    tensor_parallel_size: int = 1
    in_process: bool = False
    max_length: int = 4096
    options: dict[str, Any] = field(default_factory=dict)
    runners: list[Any] | None = None
    modes: ClassVar[tuple[str, ...]] = MODES

    def __post_init__(self) -> None:
        refuse_merged(self.policy.model, "vllm")
        if self.normalise not in ("trie", "vocab"):
            raise ValueError(f"unknown normalise {self.normalise!r}; known: trie, vocab")
        self.max_length = min(self.max_length, self.policy.model.config.get_text_config().max_position_embeddings)
        self._stamp, self._closed, self._started_ray = "", False, False
        if self.runners is not None:
            self.load_weights(self.policy.model.state_dict(), self.version)
            return
        check_vllm(self.policy.head_size)
        if self.in_process and (self.engines, self.tensor_parallel_size) != (1, 1):
            raise ValueError("in_process runs one vLLM engine on one device; use Ray actors for more")

    def _running(self) -> list[Any]:
        """The engines, started and compared with the policy when they are first needed."""
        if self._closed:
            raise RuntimeError("this vLLM engine has been closed")
        if self.runners is None:
            self.runners = self._start()
            self.check()
        return self.runners

    def _start(self) -> list[Any]:
        if self.in_process:
            with tempfile.TemporaryDirectory(prefix="sidgym-vllm-") as directory:
                write_policy(Path(directory), self.policy)
                gpus = int(torch.cuda.is_available())
                return [VllmRunner(directory, gpus, **self._options(gpus))]
        gpus, self._started_ray = start_ray_for_engines(self.engines, self.tensor_parallel_size)
        runners = [ActorRunner(self.policy, gpus, self._options(gpus)) for _ in range(self.engines)]
        for runner in runners:
            runner.wait()
        return runners

    def _options(self, gpus: int) -> dict[str, Any]:
        """What an engine on ``gpus`` GPUs, or on CPUs, is started with."""
        return {
            "dtype": str(next(self.policy.model.parameters()).dtype).removeprefix("torch."),
            "max_model_len": self.max_length,
            "tensor_parallel_size": self.tensor_parallel_size,
            "disable_log_stats": True,
            "enable_prefix_caching": True,
            **({} if gpus else {"block_size": BLOCK, "enforce_eager": True}),
            **self.options,
        }

    def load_weights(self, state: dict[str, torch.Tensor], version: int) -> None:
        """Rolls out with ``state`` from now on and calls it ``version``; the policy's model gets it, too.

        Of tied weights one name is enough. Raises ``WeightsMismatch`` where vLLM then computes something else than the
        policy, and ``ValueError`` for weights of another model.
        """
        super().load_weights(state, version)
        if self.runners is None:
            return  # they start with these weights
        self._stamp = uuid.uuid4().hex
        for runner in self._running():
            # The whole state dict: vLLM wants tied weights under each of their names.
            runner.push(self._stamp, self.policy.model.state_dict())
        self.check()

    @torch.no_grad()
    def check(self) -> float:
        """Largest difference to the policy's log-probabilities of first codes behind one prompt, over the engines.

        Raises ``WeightsMismatch`` where it is too large or no number.
        """
        prompt = self._probe()
        ids = self.policy.level_ids(0)[:MOST_IDS]
        training = self.policy.training
        self.policy.eval()
        hidden = self.policy.hidden(input_ids=torch.tensor([prompt], device=self.policy.device), use_cache=False)
        logits = self.policy.logits(hidden[0, -1])
        self.policy.train(training)
        own = (logits[ids] - logits.logsumexp(-1)).cpu().numpy()
        allowed = TOLERANCE.get(self.policy.model.dtype, COARSE)
        worst = 0.0
        for runner in self._running():
            gap = float(np.abs(runner.score(self._stamp, [prompt], [ids.tolist()], [0]) - own).max())
            if not gap <= allowed:  # NaN does not pass
                self._stamp = "refused"  # no rollout with them, whoever catches this
                raise WeightsMismatch(
                    f"vLLM's log-probabilities differ from the policy's by {gap:.2g}, at most {allowed:g} expected: "
                    "the push missed weights (tied ones need each of their names), the prefix cache is stale, or vLLM "
                    f"computes {self.policy.model.config.model_type!r} differently; engine torch needs no push"
                )
            worst = max(worst, gap)
        return worst

    def _probe(self) -> list[int]:
        """A prompt of the catalogue's first items, long enough to fill ``PROBE_BLOCKS`` blocks of the cache."""
        items = self.policy.tokens.item_tokens
        rows = np.arange(-(-PROBE_BLOCKS * BLOCK // items.shape[1])) % len(items)
        return [self.policy.tokens.history, *items[rows].reshape(-1).tolist()][: self.max_length - 1]

    def _check(self, request: Request) -> None:
        if request.mode == "free":
            raise ValueError("engine vllm cannot draw in mode 'free' (the whole vocabulary); use engine torch for it")
        super()._check(request)

    def _rollout_chunks(self, chunks: Sequence[Episodes], request: Request) -> list[Rollouts]:
        """From the same draws as ``TorchEngine``'s. Raises ``WeightsMismatch`` where the runners were given other
        weights in the meantime."""
        runners = self._running()

        @torch.no_grad()
        def serve(number: int) -> list[Rollouts]:
            """Every chunk of one runner: number, number + R, ..."""
            return [self._ask(runners[number], chunk, request) for chunk in chunks[number :: len(runners)]]

        if len(runners) == 1:
            return serve(0)
        with ThreadPoolExecutor(len(runners)) as pool:
            shares = [iter(share) for share in pool.map(serve, range(len(runners)))]
        return [next(shares[number % len(runners)]) for number in range(len(chunks))]

    def _ask(self, runner: Runner, episodes: Episodes, request: Request) -> Rollouts:
        def ask(prompts: list[list[int]], sets: list[list[int]], which: list[int]) -> np.ndarray:
            longest = max(map(len, prompts))
            if longest >= self.max_length:
                raise ValueError(
                    f"a prompt of {longest} tokens, vLLM was started for {self.max_length - 1}: shorten the histories "
                    "or raise max_length"
                )
            return runner.score(self._stamp, prompts, sets, which)

        search = AskedStochasticBeams if request.mode == "stochastic_beam" else AskedSearch
        found = search(ask, self.policy, episodes, request).run()
        return make_rollouts(found, request.trie, request.mode, self.normalise, self.version)

    def close(self) -> None:
        """Ends the vLLM engines; nothing can be asked of them any more."""
        for runner in self.runners or []:
            runner.close()
        self.runners, self._closed = None, True
        if self._started_ray:
            import ray

            ray.shutdown()
            self._started_ray = False


def check_vllm(head_size: int) -> None:
    """Raises ``ValueError`` where vLLM is not installed or cannot compute attention heads of ``head_size`` numbers,
    before anything is started."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "rl.engine = 'vllm' needs vLLM, which is not installed: pip install 'sidgym[vllm]' for CUDA, make "
            "setup-dev in a checkout on x86-64 Linux without; or use rl.engine = 'torch'"
        )
    if not torch.cuda.is_available() and head_size not in CPU_HEAD_SIZES:
        raise ValueError(
            f"rl.engine = 'vllm' on a CPU needs attention heads of {', '.join(map(str, CPU_HEAD_SIZES))} numbers, this "
            f"model's have {head_size} (policy.hidden_size / policy.heads); change them or use rl.engine = 'torch'"
        )
