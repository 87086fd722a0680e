"""A small store with words, and policies that can read them."""

import numpy as np
from toy import TINY, toy_table

from sidgym.agents.policy import Policy, build_policy
from sidgym.agents.tokens import resize_embeddings
from sidgym.envs.records import Catalogue, Sequences

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in the manner of Qwen's."""

COLOURS, THINGS = ("red", "blue", "green", "amber"), ("tent", "lamp", "kettle", "cap", "chair")


def text_store(items: int = 20) -> tuple[Catalogue, Sequences]:
    """Items with titles of their own, descriptions and categories; eight users of two to nine items."""
    titles = tuple(f"{COLOURS[i % 4]} {THINGS[i // 4 % 5]}" for i in range(items))
    catalogue = Catalogue(
        ids=np.array([f"item{i}" for i in range(items)]),
        titles=titles,
        descriptions=tuple(f"A {title} for rainy days." if i % 3 else "" for i, title in enumerate(titles)),
        categories=tuple((("Store", THINGS[i // 4 % 5].title()) if i % 5 else ()) for i in range(items)),
    )
    rng = np.random.default_rng(0)
    sizes = np.arange(2, 10)
    log = Sequences(np.arange(8) * 3, rng.integers(0, items, sizes.sum()), np.append(0, np.cumsum(sizes)))
    return catalogue, log


def text_policy(template: str = "plain", seed: int = 0, items: int = 20) -> Policy:
    """A tiny policy over the store, with a vocabulary learned from its texts."""
    catalogue, _ = text_store(items)
    corpus = [*catalogue.texts(), "<|im_start|>user assistant<|im_end|>", "What is the title? "] * 3
    policy = build_policy(TINY, toy_table(items), seed, corpus)
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    resize_embeddings(policy.model, len(policy.tokenizer) - 2, len(policy.tokenizer), seed)
    policy.tokenizer.chat_template = CHAT
    policy.use_template(template)
    return policy.eval()
