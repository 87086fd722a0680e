"""What learning changes besides the optimiser: the policy, its adapters, and the reference of its KL term.

Every trainer builds the two here, and reads and restores them by the same names. Left out: optimisers, losses and the
order of work.
"""

import copy

import torch

from sidgym.agents.checkpoint import load_policy, optimizer_tensors
from sidgym.agents.config import RlConfig
from sidgym.agents.lora import adapter_tensors, add_adapters, has_adapters, load_adapters, merged_weights
from sidgym.agents.policy import Policy
from sidgym.agents.task import RlTask

ADAPTERS, REFERENCE = "adapter/", "reference/"
"""Prefixes of what ``extra_tensors`` holds."""

Tensors = dict[str, torch.Tensor]


def learning_policies(task: RlTask, device: torch.device | str = "cpu") -> tuple[Policy, Policy | None]:
    """The policy that is trained, and the reference of the KL term where the settings ask for one."""
    config = task.config
    policy = load_policy(task.policy).to(device)
    reference = frozen_copy(policy) if config.kl_weight > 0 else None
    if config.lora_rank > 0:
        add_adapters(policy, config.lora_rank, task.seed)
    if config.gradient_checkpointing:
        policy.recompute_activations()
    return policy, reference


def frozen_copy(policy: Policy) -> Policy:
    """The same policy without gradients: the reference of a KL term."""
    twin = copy.deepcopy(policy)
    twin.requires_grad_(False)
    return twin.eval()


def model_weights(policy: Policy) -> Tensors:
    """State dict on the CPU, tied weights once (under their first name), adapters added to what they adapt."""
    weights = merged_weights(policy) if has_adapters(policy) else policy.model.state_dict()
    seen: dict[int, str] = {}
    out = {}
    for name, value in weights.items():
        if value.data_ptr() in seen and value.numel():
            continue
        seen[value.data_ptr()] = name
        out[name] = value.detach().cpu().clone()
    return out


def state_tensors(
    policy: Policy, reference: Policy | None, optimizer: torch.optim.Optimizer, config: RlConfig
) -> Tensors:
    """The optimiser's state and ``extra_tensors``, on the CPU."""
    own = {name: value.cpu() for name, value in optimizer_tensors(optimizer).items()}
    return {**own, **extra_tensors(policy, reference, config)}


def extra_tensors(policy: Policy, reference: Policy | None, config: RlConfig) -> Tensors:
    """What must be kept beside ``model_weights`` to go on: adapters, and a reference that is not the first one."""
    out = {ADAPTERS + name: value for name, value in adapter_tensors(policy).items()}
    if reference is not None and config.reference_every > 0:
        out |= {REFERENCE + name: value for name, value in model_weights(reference).items()}
    return out


def load_weights(policy: Policy, reference: Policy | None, weights: Tensors, extra: Tensors) -> None:
    """Puts ``weights`` and what ``extra_tensors`` held back; other entries of ``extra`` are passed over.

    A policy with adapters takes those alone: its weights never change. Raises ``ValueError`` for adapters of another
    rank, and for none at all.
    """
    if has_adapters(policy):
        load_adapters(policy, without_prefix(extra, ADAPTERS))
    else:
        policy.model.load_state_dict(weights, strict=False)
    kept = without_prefix(extra, REFERENCE)
    if reference is not None and kept:
        reference.model.load_state_dict(kept, strict=False)


def without_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Those whose names begin with ``prefix``, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def synchronise(reference: Policy | None, policy: Policy, config: RlConfig, done: int) -> None:
    """After ``done`` iterations: the reference takes the policy's weights if ``config.reference_every`` says so."""
    if reference is not None and config.reference_every > 0 and done % config.reference_every == 0:
        reference.model.load_state_dict(model_weights(policy), strict=False)


def reference_kind(config: RlConfig) -> str:
    """What the KL term compares the policy with, in words."""
    if config.kl_weight <= 0:
        return "none"
    return f"policy of every {config.reference_every} iterations" if config.reference_every else "frozen"
