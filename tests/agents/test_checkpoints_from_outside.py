"""Checkpoints as users bring them: add tokens, train, roll out, save, and read with ``from_pretrained``."""

import numpy as np
import pytest
import torch
from text_toy import CHAT, text_store
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toy import toy_episodes, toy_table
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from sidgym.agents.checkpoint import load_policy, read_info, save_policy
from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.engine import make_engine
from sidgym.agents.examples import compose, items_of, marks, text_of, words
from sidgym.agents.policy import build_policy
from sidgym.agents.sft import train_sft
from sidgym.agents.templates import HISTORY_HEAD, HISTORY_TAIL, TEXT_LOSS, Renderer
from sidgym.envs.records import Episodes

CATALOGUE, LOG = text_store()
SHAPES = {
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": False},
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt2": {},
}


PLAIN_CHAT = (CHAT, "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{1}<|im_end|>")
THINKING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe of help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n{1}<|im_end|>",
)
DATED = (
    "{{ bos_token }}<|start|>system<|stop|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n<|im_end|>"
    "{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}",
    "<s><|start|>system<|stop|>\n\nToday: 26 Jul 2024\n\n<|im_end|><|start|>user<|stop|>\n\n{0}<|im_end|>"
    "<|start|>assistant<|stop|>\n\n{1}<|im_end|>",
)
TEMPLATES = {"qwen2": PLAIN_CHAT, "qwen3": THINKING, "llama": DATED, "gpt2": PLAIN_CHAT}
"""Chat templates in the manner of released ones, and what they make of a question and an answer: with a system turn of
their own and an empty thought; with a token that opens the text, the day, and blanks cut off."""


def bpe_tokenizer(kind):
    """A byte-pair tokenizer learned here, with the special tokens of an instruct checkpoint."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<|start|>", "<|stop|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=343,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*CATALOGUE.texts(), "user assistant system"] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<s>",
        extra_special_tokens=specials[1:2],
    )
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer.chat_template = TEMPLATES[kind][0]
    return tokenizer


def save_instruct(kind, directory):
    """A small random checkpoint whose generation_config draws at random and forbids much."""
    tokenizer = bpe_tokenizer(kind)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = -(-len(tokenizer) // 64) * 64  # rows to spare, as released checkpoints have them
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=size, **shape, **SHAPES[kind]))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, top_p=0.5, top_k=3, repetition_penalty=1.3, eos_token_id=5, max_new_tokens=1
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def check_markup(policy, expected):
    """An example is what the chat template says of it, up to the token that ends it, and only what is said is learned;
    a prompt is the same up to the answer."""
    items = np.array([3])
    asked, told = [words("What is", 1)], [text_of(["a <think> tent"], np.array([0]))]
    rows = Renderer.of(policy).render(compose(asked, told))
    assert policy.tokenizer.decode(rows.tokens) == expected.format("What is", "a <think> tent")
    assert policy.tokenizer.decode(rows.tokens[rows.loss == TEXT_LOSS]) == "a <think> tent<|im_end|>"
    history = [words(HISTORY_HEAD, 1), marks(1), items_of(items, np.ones(1)), words(HISTORY_TAIL, 1)]
    (question,) = Renderer.of(policy).questions(compose(history, [items_of(items, np.ones(1))]))
    ids, mask = policy.tokens.prompts(items[None])
    assert ids[mask].tolist() == question.tolist()
    name = "".join(level[code] for level, code in zip(policy.table.tokens(), policy.table.codes[3]))
    text = f"{HISTORY_HEAD}<|history|>{name}{HISTORY_TAIL}"
    assert policy.tokenizer.decode(question) == expected.partition("{1}")[0].format(text)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_a_checkpoint_goes_all_the_way(kind, tmp_path):
    source = save_instruct(kind, tmp_path / "source")
    table = toy_table(20)
    policy = build_policy(PolicyConfig(path=str(source)), table, 0)
    known = len(AutoTokenizer.from_pretrained(source))
    assert min(int(ids.min()) for ids in policy.tokens.levels) >= known, "codes are new tokens"
    valid = Episodes(np.arange(4), np.arange(4), np.arange(8).reshape(4, 2), np.arange(4)[:, None])
    config = SftConfig(
        tasks=("retrieval:2", "caption:1", "titles_to_sid:1"), template="chat", epochs=1, batch=8, lr=1e-2
    )
    result = train_sft(policy, LOG, valid, config, 4, 0, catalogue=CATALOGUE)
    assert np.isfinite(result.history[0]["train_loss"])
    check_markup(policy, TEMPLATES[kind][1])
    contexts = toy_episodes(5, 20)
    drawn = make_engine("torch", policy, 5, "trie").rollout(contexts, 4)
    assert drawn.valid.all()
    save_policy(tmp_path / "saved", policy, {"history": 4})
    assert read_info(tmp_path / "saved")["template"] == "chat"
    back = load_policy(tmp_path / "saved", table)
    assert back.template == "chat"
    again = make_engine("torch", back, 5, "trie").rollout(contexts, 4)
    assert np.array_equal(again.codes, drawn.codes)
    assert np.array_equal(again.logp, drawn.logp)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    own = policy.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_generation_settings_of_an_instruct_checkpoint_change_no_rollout(kind, tmp_path):
    source, table, contexts = save_instruct(kind, tmp_path / "source"), toy_table(20), toy_episodes(5, 20)
    settled = AutoModelForCausalLM.from_pretrained(source).generation_config
    assert (settled.temperature, settled.top_k) == (0.3, 3), "they are really there"
    policy = build_policy(PolicyConfig(path=str(source)), table, 0)
    own = make_engine("torch", policy, 5, "trie").rollout(contexts, 4)
    theirs = make_engine("hf", policy, 5, "trie").rollout(contexts, 4)
    assert np.array_equal(own.codes, theirs.codes)
    assert np.abs(own.logp - theirs.logp).max() < 1e-4
    save_policy(tmp_path / "saved", policy)
    left = GenerationConfig.from_pretrained(tmp_path / "saved").to_diff_dict()
    assert not {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens"} & set(left)
