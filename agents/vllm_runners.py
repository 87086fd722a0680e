"""One vLLM engine, in this process or in a Ray actor: asked for log-probabilities, given weights.

The only module that imports vLLM. It wants environment variables before torch is imported and replaces functions of
torch, so a process of its own is the rule. Left out: the search, and whether weights have arrived (``engine_vllm``).
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

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
"""Set in vLLM's process where the caller's environment does not say otherwise; the second ones without CUDA only."""


def environment() -> dict[str, str]:
    """Variables that vLLM's process wants, as the caller has them or by default."""
    wanted = ENVIRONMENT if torch.cuda.is_available() else {**ENVIRONMENT, **ON_CPU}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


OBJECT_STORE = 150 * 2**20
"""Bytes of Ray's object store where this module starts Ray; prompts and log-probabilities are small."""


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

    def __init__(self, directory: str, **options: Any):
        os.environ.update(environment())
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
    """A ``VllmRunner`` in a Ray actor; weights travel as a file, so it must share a file system with this process."""

    def __init__(self, directory: str, gpus: int, options: dict[str, Any]):
        import ray

        # No CPU is reserved: whoever asks waits for the answer, and a cluster of workers alone must have room for it.
        remote = ray.remote(VllmRunner).options(num_cpus=0, num_gpus=gpus, runtime_env={"env_vars": environment()})
        self.ray = ray
        self.actor: Any = remote.remote(directory, **options)

    def wait(self) -> None:
        """Until the engine has started."""
        self.ray.get(self.actor.__ray_ready__.remote())

    def score(self, stamp: str, prompts: list[list[int]], sets: list[list[int]], which: list[int]) -> np.ndarray:
        return self.ray.get(self.actor.score.remote(stamp, prompts, sets, which))

    def push(self, stamp: str, state: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="sidgym-push-") as directory:
            # Tied weights share memory, which the format refuses.
            whole = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
            save_file(whole, Path(directory) / "model.safetensors")
            self.ray.get(self.actor.push_files.remote(stamp, directory))

    def close(self) -> None:
        self.ray.kill(self.actor, no_restart=True)


def start_ray(engines: int, each: int) -> tuple[int, bool]:
    """Starts Ray on this machine unless it runs. GPUs of each engine (0 without CUDA), and whether it had to start.

    Raises ``ValueError`` where Ray has fewer than ``engines`` times ``each``: they would wait for ever.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    running = ray.is_initialized()
    if not running:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    known = int(ray.cluster_resources().get("GPU", 0))
    if not known and not torch.cuda.is_available():
        return 0, not running
    if known < engines * each:
        raise ValueError(
            f"{engines} vLLM engines on {each} GPUs each need {engines * each}, Ray has {known}: use fewer "
            "(rl.engines, rl.tensor_parallel)"
        )
    return each, not running
