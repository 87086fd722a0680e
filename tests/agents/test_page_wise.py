"""Page-wise next-token prediction: the loss of eq. 4, its rows, and what point-wise asks instead."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from text_toy import text_policy
from toy import TINY, naive_logp, toy_policy, toy_table

from sidgym.agents.config import SftConfig
from sidgym.agents.merger import merger_of
from sidgym.agents.mixture import check_sft, is_packed, reads_pages, reads_text
from sidgym.agents.policy import build_policy
from sidgym.agents.sft import make_feed, train_sft
from sidgym.agents.sft_packed import packed_loss
from sidgym.agents.tasks import TASKS, TaskContext
from sidgym.agents.templates import SID_LOSS, SILENT, Renderer
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.logged_pages import logged_pages, page_targets
from sidgym.envs.records import PAD_ITEM, Interactions, Sequences
from sidgym.envs.splits import split

CONFIG = DataConfig(users=60, items=20, history=4)
DATA = load_dataset(CONFIG, 0)
SPLITS = split(DATA, CONFIG, 0)
LOG = SPLITS.sft
PAGES = logged_pages(DATA.interactions, LOG, 4)
TABLE = toy_table(20)


def context(**settings) -> TaskContext:
    return TaskContext(LOG, DATA.catalogue, 4, pages=PAGES, **settings)


@pytest.mark.parametrize("order", ["strongest", "logged"])
@pytest.mark.parametrize("exposed", [False, True])
def test_the_loss_is_that_of_equation_4(order, exposed):
    policy = toy_policy(TABLE, scale=4.0)
    given = context(page_order=order, page_exposed=exposed)
    rows = Renderer.of(policy).render(TASKS["page_wise"](given))
    history = PAGES.contexts.history
    usable = np.flatnonzero((history != PAD_ITEM).any(axis=1))
    assert len(rows) == len(usable)  # every page has a positive; those before which nothing happened ask nothing
    items, counts = page_targets(PAGES, order, exposed, np.random.default_rng(0))
    chosen = np.argsort(-counts[usable], kind="stable")[:3]
    assert counts[usable[chosen]].min() > 1
    wanted, tokens = 0.0, 0
    for page in usable[chosen]:
        past = history[page]
        for item in items[page, : counts[page]]:
            wanted -= float(naive_logp(policy, past, TABLE.codes[item], "vocab").detach().sum())
            tokens += TABLE.codes.shape[1]
            past = np.append(past, item)
    loss, count = packed_loss(policy, rows.take(chosen))
    assert count == tokens
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_where_items_are_merged_the_page_is_said_behind_its_own_codes(architecture):
    """Prompt [history merged], then the codes of y_1, the codes of y_2, ...: one plain pass over embeddings a page."""
    policy = toy_policy(TABLE, scale=4.0, config=replace(TINY, architecture=architecture, merge_items=True))
    merger, generator = merger_of(policy.model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in merger.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    rows = Renderer.of(policy).render(TASKS["page_wise"](context()))
    history = PAGES.contexts.history
    usable = np.flatnonzero((history != PAD_ITEM).any(axis=1))
    items, counts = page_targets(PAGES, "strongest", False, np.random.default_rng(0))
    chosen = np.argsort(-counts[usable], kind="stable")[:3]
    wanted, tokens = 0.0, 0
    for page in usable[chosen]:
        past = history[page][history[page] != PAD_ITEM]
        prompt = policy.embed(torch.from_numpy(policy.tokens.prompts(past[None])[0]))[0]
        assert len(prompt) == 1 + len(past)
        said = torch.from_numpy(policy.tokens.item_tokens[items[page, : counts[page]]].reshape(-1))
        whole = torch.cat([prompt, policy.model.get_input_embeddings()(said)])
        logits = policy.model(inputs_embeds=whole[None]).logits[0, len(prompt) - 1 : -1].float()
        wanted += float(torch.nn.functional.cross_entropy(logits, said, reduction="sum").detach())
        tokens += len(said)
    loss, count = packed_loss(policy, rows.take(chosen))
    assert count == tokens
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("task", ["page_wise", "point_wise"])
def test_the_prompt_is_retrievals_and_only_the_page_is_supervised(task):
    for template in ("plain", "chat"):
        policy = text_policy(template)
        given = context(chat=template == "chat")
        found = Renderer.of(policy).render(TASKS[task](given))
        asked = (
            Renderer.of(policy).questions(TASKS["retrieval"](replace(given, pages=None))) if template == "chat" else ()
        )
        items, counts = page_targets(PAGES, "strongest", False, np.random.default_rng(0))
        used = (PAGES.contexts.history != PAD_ITEM).any(axis=1)
        sizes = counts[used] if task == "page_wise" else np.ones(used.sum(), dtype=np.int64)
        codes = policy.tokens.item_tokens
        owner = np.repeat(np.arange(len(found)), found.lengths)
        assert set(found.loss.tolist()) == {SILENT, SID_LOSS}
        assert np.bincount(owner[found.loss == SID_LOSS]).tolist() == (sizes * codes.shape[1]).tolist()
        targets = items[used][np.arange(items.shape[1]) < sizes[:, None]]
        assert found.tokens[found.loss == SID_LOSS].tolist() == codes[targets].reshape(-1).tolist()
        head = np.split(found.tokens, found.offsets[1:-1])[0]
        mark = int(np.flatnonzero(head == policy.tokens.history)[0])
        if template == "chat":
            question = asked[0]
            assert head[: mark + 1].tolist() == question[: mark + 1].tolist()
            tail = question[len(question) - 3 :]
            assert head[len(head) - sizes[0] * codes.shape[1] - 3 :][:3].tolist() == tail.tolist()
        else:
            assert mark == 0


def test_a_random_order_is_another_one_each_epoch_and_the_same_by_seed():
    first, again, later = (TASKS["page_wise"](context(page_order="random", epoch=n)).ref for n in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


def test_training_by_pages_is_packed_and_learns():
    config = SftConfig(tasks=("page_wise",), epochs=3, batch=16, eval_users=10, lr=1e-2, warmup_steps=1)
    assert [is_packed(config), reads_pages(config), reads_text(config)] == [True, True, False]
    assert [is_packed(SftConfig()), reads_pages(SftConfig())] == [False, False]
    policy = build_policy(TINY, TABLE, 0)
    result = train_sft(policy, LOG, SPLITS.valid, config, 4, 0, pages=PAGES)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    passes = {}
    for task in ("page_wise", "point_wise"):
        feed = make_feed(policy, LOG, replace(config, tasks=(task,)), 4, 0, pages=PAGES)
        batches = feed.epoch(0)
        passes[task] = len(batches), sum(int(feed.counts(batch)[0].sum()) for batch in batches)
    assert passes["page_wise"] == passes["point_wise"]


def test_pages_of_all_change_nothing_of_retrieval():
    given = context()
    for task in ("retrieval", "titles_to_sid", "persona"):
        with_pages, without = TASKS[task](given), TASKS[task](replace(given, pages=None))
        assert all(np.array_equal(getattr(with_pages, n), getattr(without, n)) for n in ("kind", "ref", "loss"))


def test_what_has_no_pages_is_refused():
    with pytest.raises(ValueError, match="pass pages="):
        TASKS["page_wise"](TaskContext(LOG))
    bare = Interactions(np.zeros(3, dtype=np.int64), np.arange(3), np.arange(3))
    log = Sequences(np.array([0]), np.arange(3), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"Interactions\.page"):
        TASKS["point_wise"](TaskContext(log, pages=logged_pages(bare, log, 4)))
    with pytest.raises(ValueError, match="expected strongest, logged or random, got 'best'"):
        check_sft(SftConfig(tasks=("page_wise",), page_order="best"))


def test_only_finite_losses_train():
    policy = build_policy(TINY, TABLE, 0)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(FloatingPointError):
        train_sft(policy, LOG, SPLITS.valid, SftConfig(tasks=("page_wise",), epochs=1), 4, 0, pages=PAGES)
