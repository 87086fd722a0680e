"""Examples as tokens: what stands where, what is supervised, and that a prompt is the same in training and rollout."""

from datetime import datetime

import numpy as np
import pytest
from text_toy import CHAT, text_policy, text_store

from sidgym.agents.examples import Examples, compose, items_of, joined, marks, text_of, words
from sidgym.agents.policy import prompt_arrays
from sidgym.agents.tasks import TASKS, TaskContext
from sidgym.agents.templates import (
    DAY,
    HISTORY_HEAD,
    HISTORY_TAIL,
    SID_LOSS,
    SILENT,
    TEXT_LOSS,
    Renderer,
    make_template,
)
from sidgym.agents.tokens import HISTORY_TOKEN, fresh_tokenizer


def decoded(policy, rows, number):
    part = rows.tokens[rows.offsets[number] : rows.offsets[number + 1]]
    return policy.tokenizer.decode(part)


def supervised(policy, rows, number):
    span = slice(rows.offsets[number], rows.offsets[number + 1])
    return policy.tokenizer.decode(rows.tokens[span][rows.loss[span] != SILENT])


def sid(policy, item):
    return "".join(level[code] for level, code in zip(policy.table.tokens(), policy.table.codes[item]))


def question_and_title(policy):
    catalogue, _ = text_store()
    items = np.array([4, 2])
    question = [words("What is ", 2), items_of(items, np.ones(2)), words("?", 2)]
    return catalogue, compose(question, [text_of(catalogue.titles, items)])


@pytest.mark.parametrize(("template", "expected"), [
    ("plain", "What is {sid}?\n{title}<eos>"),
    ("chat", "<|im_start|>user\nWhat is {sid}?<|im_end|>\n<|im_start|>assistant\n{title}<|im_end|>"),
])  # fmt: skip
def test_a_question_and_its_answer(template, expected):
    policy = text_policy(template)
    catalogue, examples = question_and_title(policy)
    rows = Renderer.of(policy).render(examples)
    end = "<eos>" if template == "plain" else "<|im_end|>"
    for number, item in enumerate((4, 2)):
        title = catalogue.titles[item]
        assert decoded(policy, rows, number) == expected.format(sid=sid(policy, item), title=title)
        assert supervised(policy, rows, number) == title + end
    assert set(np.unique(rows.loss)) == {SILENT, TEXT_LOSS}


def test_an_answer_in_codes_has_no_end_and_its_codes_are_marked():
    policy = text_policy()
    catalogue, _ = text_store()
    items = np.array([3, 0, 5])
    examples = compose([text_of(catalogue.titles, items)], [items_of(items, np.ones(3))])
    rows = Renderer.of(policy).render(examples)
    for number, item in enumerate(items):
        assert decoded(policy, rows, number) == f"{catalogue.titles[item]}\n{sid(policy, item)}"
        span = slice(rows.offsets[number], rows.offsets[number + 1])
        assert (rows.loss[span] == SID_LOSS).sum() == policy.levels
        assert supervised(policy, rows, number) == sid(policy, item)


def test_without_a_question_there_is_no_markup_and_the_first_token_is_not_supervised():
    for template in ("plain", "chat"):
        policy = text_policy(template)
        plain = compose([], [marks(2), items_of(np.array([1, 2, 3]), np.array([2, 1]))])
        rows = Renderer.of(policy).render(plain)
        assert decoded(policy, rows, 0) == HISTORY_TOKEN + sid(policy, 1) + sid(policy, 2)
        assert rows.loss.tolist() == [SILENT, *[SID_LOSS] * 6, SILENT, *[SID_LOSS] * 3]
        text = Renderer.of(policy).render(compose([], [words("blue tent", 1)]))
        assert text.loss[0] == SILENT
        assert (text.loss[1:] == TEXT_LOSS).all()


def test_empty_examples_and_empty_parts_keep_their_rows():
    policy = text_policy()
    counts = np.array([0, 2, 0])
    examples = compose([words("x", 3), items_of(np.array([1, 2]), counts)], [items_of(np.array([7, 8, 9]), np.ones(3))])
    rows = Renderer.of(policy).render(examples)
    short = decoded(policy, rows, 0)
    assert short == f"x\n{sid(policy, 7)}"
    assert decoded(policy, rows, 1).startswith("x<a_")
    nothing = examples.take(np.zeros(0, dtype=np.int64))
    assert len(Renderer.of(policy).render(nothing)) == 0


def test_taking_and_joining_move_whole_examples():
    policy = text_policy()
    _, one = question_and_title(policy)
    other = compose([words("and ", 3)], [items_of(np.array([1, 2, 3]), np.ones(3))])
    both = joined([one, other])
    assert isinstance(both, Examples)
    assert len(both) == 5
    renderer = Renderer.of(policy)
    whole, order = renderer.render(both), np.array([4, 0, 0, 2])
    again = renderer.render(both.take(order))
    for place, number in enumerate(order):
        assert decoded(policy, again, place) == decoded(policy, whole, number)
        assert decoded(policy, whole.take(order), place) == decoded(policy, whole, number)


def test_a_text_is_cut_and_special_names_in_it_are_text():
    policy = text_policy()
    examples = compose([words("Q", 1)], [text_of([f"a {HISTORY_TOKEN} tent in the rain"], np.zeros(1, dtype=int))])
    rows = Renderer.of(policy).render(examples)
    assert policy.tokens.history not in rows.tokens
    assert decoded(policy, rows, 0).startswith(f"Q\na {HISTORY_TOKEN} tent")
    cut = Renderer.of(policy, most=3).render(examples)
    assert (cut.loss == TEXT_LOSS).sum() == 3, "and no end, where the text goes on"
    assert len(cut.tokens) == len(Renderer.of(policy, most=1).render(examples).tokens) + 2
    exact = Renderer.of(policy, most=int((rows.loss == TEXT_LOSS).sum()) - 1).render(examples)
    assert exact.tokens.tolist() == rows.tokens.tolist(), "a text that just fits is not cut"
    assert supervised(policy, exact, 0).endswith("<eos>")


def test_the_words_around_a_history_are_never_cut():
    """A rollout's prompt has them whole, however short texts are cut in training."""
    policy = text_policy("chat")
    history = items_of(np.array([4, 7]), np.array([2]))
    parts = [words(HISTORY_HEAD, 1), marks(1), history, words(HISTORY_TAIL, 1)]
    examples = compose(parts, [text_of(("a red tent and a lamp",), np.array([0]))])
    cut, whole = (Renderer.of(policy, most) for most in (2, 0))
    assert len(cut.render(examples).tokens) < len(whole.render(examples).tokens)
    assert cut.questions(examples)[0].tolist() == policy.tokens.prompts(np.array([[4, 7]]))[0][0].tolist()


def test_no_word_of_a_task_is_cut_and_training_asks_as_a_rollout_does():
    policy = text_policy("chat")
    catalogue, log = text_store()
    context = TaskContext(log, catalogue, 4, {int(user): "likes tents" for user in log.user}, chat=True)
    examples = TASKS["retrieval"](context)
    histories = np.full((len(examples), 5), -1)
    for row in range(len(examples)):
        past = examples.ref[(examples.row == row) & ~examples.answer & examples.loss]
        histories[row, 5 - len(past) :] = past
    ids, mask = prompt_arrays(policy, histories)
    for question, prompt, seen in zip(Renderer.of(policy, most=2).questions(examples), ids, mask):
        assert question.tolist() == prompt[seen].tolist()
    for name in ("title_to_sid", "titles_to_sid", "history_to_title", "sid_to_title", "summary", "caption"):
        rows = Renderer.of(policy, most=1).render(TASKS[name](context))
        whole = TASKS[name](context)
        for text in whole.whole:
            assert text in decoded(policy, rows, 0), name


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(monkeypatch):
    from transformers.utils import chat_template_utils

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3)

    policy = text_policy()
    policy.tokenizer.chat_template = "Today Date: {{ strftime_now('%d %b %Y') }}\n" + CHAT
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    turns = [{"role": "user", "content": "x"}]
    assert "03 Feb 2031" in policy.tokenizer.apply_chat_template(turns, tokenize=False), "the clock is really read"
    policy.use_template("chat")
    before = policy.tokenizer.decode(make_template(policy.tokenizer, "chat").before)
    assert before.startswith(f"Today Date: {DAY:%d %b %Y}\n")
    text = policy.tokenizer.decode(policy.tokens.prompts(np.array([[1, 2]]))[0][0])
    assert text.startswith("Today Date: 26 Jul 2024\n")


def test_history_prompts_have_the_templates_markup_and_are_padded_on_the_left():
    policy = text_policy("chat")
    ids, mask = prompt_arrays(policy, np.array([[-1, -1], [-1, 3], [1, 2]]))
    texts = [policy.tokenizer.decode(row[seen]) for row, seen in zip(ids, mask)]
    for text, items in zip(texts, ([], [3], [1, 2])):
        assert text.startswith("<|im_start|>user\nItems that a user chose")
        assert HISTORY_TOKEN + "".join(sid(policy, item) for item in items) + "\nWhich" in text
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert not mask[0, : 2 * policy.levels].any()
    assert mask[2].all()


def test_what_cannot_be_done_says_what_to_do():
    with pytest.raises(ValueError, match=r"sft\.template = 'plain'"):
        make_template(fresh_tokenizer(), "chat")
    with pytest.raises(ValueError, match="known: plain, chat"):
        make_template(fresh_tokenizer(), "alpaca")
    policy = text_policy()
    policy.tokenizer.chat_template = CHAT.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
    with pytest.raises(ValueError, match="once each"):
        make_template(policy.tokenizer, "chat")
    with pytest.raises(ValueError, match="same examples"):
        compose([words("a", 2)], [words("b", 3)])
