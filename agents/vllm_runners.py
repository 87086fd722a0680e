"""One vLLM engine, in this process or in a Ray actor: asked for log-probabilities, given weights.

The only module that imports vLLM. It wants environment variables before torch is imported and replaces functions of
torch, so a process of its own is the rule. Left out: the search, and whether weights have arrived (``engine_vllm``).
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sidgym.agents.checkpoint import write_policy
from sidgym.agents.policy import Policy
from sidgym.agents.ray_start import stay_here

MOST_IDS = 128
"""Log-probabilities that vLLM gives a request at most; wider nodes are asked for in several requests."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in our own process, where weights can be handed over
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "TORCHDYNAMO_DISABLE": "1",  # half a minute for the first step, and no gain on small models
}
"""Set in vLLM's process where the caller's environment does not say otherwise; the second ones without GPUs only."""


STARTED = 1200.0
"""Seconds in which an engine in a Ray actor has started: it loads the model, and compiles it on a GPU."""


def environment(gpus: int) -> dict[str, str]:
    """Variables that the process of an engine on ``gpus`` GPUs wants, as the caller has them or by default."""
    wanted = ENVIRONMENT if gpus else {**ENVIRONMENT, **ON_CPU}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


class WeightsMismatch(RuntimeError):
    """vLLM computes with other weights than the policy has."""


class Runner(Protocol):
    """One vLLM engine, wherever it runs."""

    def score(self, stamp: str, prompts: list[list[int]], sets: list[list[int]], which: list[int]) -> np.ndarray:
        """Log-probabilities under the whole softmax of the tokens ``sets[which[i]]`` behind prompt i, end to end."""

    def push(self, stamp: str, state: dict[str, torch.Tensor]) -> None:
        """Takes other weights."""

    def close(self) -> None:
        """Ends the engine."""


class VllmRunner:
    """vLLM's ``LLM`` in this process. ``stamp`` names the weights it holds; a request names those that it expects."""

    def __init__(self, directory: str, gpus: int, **options: Any):
        os.environ.update(environment(gpus))
        from vllm import LLM

        self.llm = LLM(model=directory, **options)
        self.stamp = ""

    def score(self, stamp: str, prompts: list[list[int]], sets: list[list[int]], which: list[int]) -> np.ndarray:
        if stamp != self.stamp:
            raise WeightsMismatch("this vLLM engine has been given other weights since; push them again (load_weights)")
        from vllm import SamplingParams

        def ask(ids: list[int]) -> SamplingParams:
            return SamplingParams(
                temperature=0,
                max_tokens=1,
                detokenize=False,
                ignore_eos=True,
                flat_logprobs=True,
                skip_clone=True,
                logprob_token_ids=ids,
            )

        pieces = [[ask(ids[at : at + MOST_IDS]) for at in range(0, len(ids), MOST_IDS)] for ids in sets]
        asked = [(prompt, piece) for prompt, number in zip(prompts, which) for piece in pieces[number]]
        answers = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in asked], [piece for _, piece in asked], use_tqdm=False
        )
        out: list[float] = []
        for answer, (_, piece) in zip(answers, asked):
            # The sampled token's stands first; where requests of one step differ in length, filling follows.
            out += answer.outputs[0].logprobs.logprobs[1 : 1 + len(piece.logprob_token_ids)]
        return np.array(out, dtype=np.float32)

    def push(self, stamp: str, state: dict[str, torch.Tensor]) -> None:
        """Takes weights from this process; vLLM must compute in it, too (one device)."""
        self._reload(stamp, weights_iterator=iter(list(state.items())))

    def push_files(self, stamp: str, directory: str) -> None:
        """As ``push``, from the ``*.safetensors`` in ``directory``; serves workers in processes of their own, too."""
        self._reload(stamp, weights_path=directory)

    def _reload(self, stamp: str, **source: Any) -> None:
        self.llm.collective_rpc("reload_weights", kwargs=source)
        if not self.llm.reset_prefix_cache():
            raise WeightsMismatch("vLLM did not empty its prefix cache: it still computes, or holds blocks")
        self.stamp = stamp

    def close(self) -> None:
        del self.llm


class ActorRunner:
    """A ``VllmRunner`` in a Ray actor on the node of this process: weights travel as a file in its temporary folder.

    An actor that dies is replaced by one of the same weights, as long as the tensors that were pushed hold them.
    """

    def __init__(self, policy: Policy, gpus: int, options: dict[str, Any]):
        import ray

        self.ray, self.policy, self.gpus, self.options = ray, policy, gpus, options
        self.pushed: tuple[str, dict[str, torch.Tensor]] | None = None
        self._start()

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="sidgym-vllm-")
        write_policy(Path(self.folder.name), self.policy)
        # No CPU is reserved: whoever asks waits for the answer, and a cluster of workers alone must have room for it.
        remote = self.ray.remote(
            num_cpus=0,
            num_gpus=self.gpus,
            runtime_env={"env_vars": environment(self.gpus)},
            scheduling_strategy=stay_here(),
        )(VllmRunner)
        self.actor: Any = remote.remote(self.folder.name, self.gpus, **self.options)

    def wait(self) -> None:
        """Until the engine has started. Raises ``RuntimeError`` after ``STARTED`` seconds."""
        try:
            self.ray.get(self.actor.__ray_ready__.remote(), timeout=STARTED)
        except self.ray.exceptions.GetTimeoutError as error:
            self.close()
            raise RuntimeError(
                f"a vLLM engine has not started within {STARTED:g} s; it wants {self.gpus} GPUs of this machine, which "
                "others may have taken"
            ) from error
        finally:
            self.folder.cleanup()

    def score(self, stamp: str, prompts: list[list[int]], sets: list[list[int]], which: list[int]) -> np.ndarray:
        try:
            return self.ray.get(self.actor.score.remote(stamp, prompts, sets, which))
        except self.ray.exceptions.RayActorError:
            self._replace()
        return self.ray.get(self.actor.score.remote(stamp, prompts, sets, which))

    def push(self, stamp: str, state: dict[str, torch.Tensor]) -> None:
        self.pushed = stamp, state
        try:
            self._send(stamp, state)
        except self.ray.exceptions.RayActorError:
            self._replace()

    def _replace(self) -> None:
        print("a vLLM engine was lost; it is started again", file=sys.stderr, flush=True)
        self._start()
        self.wait()
        if self.pushed:
            self._send(*self.pushed)

    def _send(self, stamp: str, state: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="sidgym-push-") as directory:
            # Tied weights share memory, which the format refuses.
            whole = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
            save_file(whole, Path(directory) / "model.safetensors")
            self.ray.get(self.actor.push_files.remote(stamp, directory))

    def close(self) -> None:
        self.ray.kill(self.actor, no_restart=True)
