"""Low-rank adapters (peft) that are trained instead of the weights (Hu et al. 2021, "LoRA").

A layer ``W x`` becomes ``W x + 2 B A x`` with A (r, in) drawn at random and B (out, r) zero at first (alpha is twice
the rank r). All linear layers inside the blocks get them; embeddings and output layer stay as they are. Whoever else
reads the policy (engines, validation, checkpoints) gets ``merged_weights``, under the names of a plain model. Left out:
adapters of other kinds, and starting from somebody's trained ones.
"""

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from sidgym.agents.policy import Policy

ADAPTER = "default"
MARK = ".lora_"
"""In the names of an adapter's parameters and of no others."""


def add_adapters(policy: Policy, rank: int, seed: int) -> None:
    """Puts adapters of ``rank`` into the policy's model, drawn from ``seed``; from then on they alone have gradients.

    Raises ``ModuleNotFoundError`` where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"rl.lora_rank and sft.lora_rank need peft ({error.name} is not installed): pip install 'sidgym[lora]', or "
            "set them to 0"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        # GPT-2's layers keep their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in policy.model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy.model, ADAPTER)
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(MARK in name)
    policy.model.eval()


def has_adapters(policy: Policy) -> bool:
    """Whether ``add_adapters`` was called."""
    return any(MARK in name for name, _ in policy.model.named_parameters())


def adapter_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    """The adapters' parameters by name, copied to the CPU; none without adapters."""
    parameters = policy.model.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in parameters if MARK in name}


def load_adapters(policy: Policy, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of ``adapter_tensors``. Raises ``ValueError`` for those of another model or rank."""
    own = {name: value for name, value in policy.model.named_parameters() if MARK in name}
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in tensors.items()}:
        raise ValueError(
            f"expected {len(own)} adapter parameters as this model has them, got {len(tensors)} of other names or "
            "shapes: was this run begun with another lora_rank?"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


@torch.no_grad()
def merged_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """State dict in which every layer's adapter is added to its weight, named as without adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = policy.model
    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    added = {f"{name}.base_layer.weight": layer.get_delta_weight(ADAPTER) for name, layer in layers.items()}
    plain = {name: value for name, value in model.state_dict().items() if MARK not in name}
    return {
        name.replace(".base_layer.", "."): value + added[name] if name in added else value
        for name, value in plain.items()
    }
