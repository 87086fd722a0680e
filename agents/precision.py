"""Passes in half precision: one context for supervised training, the update and the baselines.

Left out: weights, gradients, optimisers and logits, which are float32 throughout.
"""

import functools
import warnings
from contextlib import AbstractContextManager

import torch

WITHOUT = ("AVX2", "NO AVX")
"""What torch calls the x86-64 processors on which it has no fast bfloat16 product. On one of AVX2 a product of
2048 x 256 x 1024 in bfloat16 took 42 times as long as in float32."""


def mixed_precision(device: str, precision: str) -> AbstractContextManager[None]:
    """While a pass is made on a kind of ``device``: matrix products in ``precision``, float32 or bfloat16.

    Warns once where bfloat16 would be slower than float32.
    """
    half = precision == "bfloat16"
    if half and device == "cpu":
        warn_of_slow_products(torch.backends.cpu.get_cpu_capability())
    return torch.autocast(device, torch.bfloat16, enabled=half)


@functools.cache
def warn_of_slow_products(capability: str) -> None:
    """Once for each ``capability``, as torch names what a processor has."""
    if capability in WITHOUT:
        warnings.warn(
            f"this processor ({capability}) has no instructions for bfloat16: passes take many times as long as in "
            "float32. Set precision = 'float32', or train on a GPU or a processor with AVX-512",
            stacklevel=3,
        )
