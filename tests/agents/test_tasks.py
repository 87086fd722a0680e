"""Every task's questions and answers against a reading of the same data by hand, and how tasks are mixed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from text_toy import text_policy, text_store
from toy import toy_episodes

from sidgym.agents.config import SftConfig
from sidgym.agents.mixture import (
    Mixture,
    check_sft,
    is_packed,
    parse_tasks,
    reads_text,
    seen_table,
)
from sidgym.agents.policy import prompt_arrays
from sidgym.agents.sft import make_feed
from sidgym.agents.task_contexts import task_contexts
from sidgym.agents.task_files import category_profiles, read_documents, read_labels
from sidgym.agents.tasks import TASKS, TaskContext
from sidgym.agents.templates import SILENT, Renderer
from sidgym.envs.records import PAD_ITEM, Sequences

CATALOGUE, LOG = text_store()


def context_of(**settings):
    labels = {int(user): f"likes tents, user {user}" for user in LOG.user[:3]}
    return TaskContext(LOG, CATALOGUE, 4, labels, ("A first text.", "A second one."), **settings)


def read_aloud(name, template="plain", **settings):
    """Each example of a task as (all of it, what is supervised), decoded, SIDs as item numbers in brackets."""
    policy = text_policy(template)
    rows = Renderer.of(policy).render(TASKS[name](context_of(chat=template == "chat", **settings)))
    out = []
    for number in range(len(rows)):
        span = slice(rows.offsets[number], rows.offsets[number + 1])
        ids, said = rows.tokens[span], rows.loss[span] != SILENT
        out.append((numbered(policy, ids), numbered(policy, ids[said])))
    return out


def numbered(policy, ids):
    text = policy.tokenizer.decode(ids)
    for item, codes in enumerate(policy.table.codes):
        name = "".join(level[code] for level, code in zip(policy.table.tokens(), codes))
        text = text.replace(name, f"[{item}]")
    return text


def in_log(user_items, past, target):
    """Whether ``target`` follows ``past`` somewhere in a user's items."""
    size = len(past)
    return any(user_items[i - size : i] == past and user_items[i] == target for i in range(size, len(user_items)))


def items_in(text):
    return [int(part.partition("]")[0]) for part in text.split("[")[1:]]


def user_logs():
    return [LOG[row].tolist() for row in range(len(LOG))]


def test_retrieval_supervises_every_item_behind_the_mark():
    rows = read_aloud("retrieval")
    for whole, said in rows:
        assert whole == "<|history|>" + said
        assert 1 <= len(items_in(said)) <= 5
    assert sorted(i for _, said in rows for i in items_in(said)) == sorted(LOG.items.tolist())


def test_retrieval_in_a_chat_asks_with_all_but_the_last_item():
    rows = read_aloud("retrieval", "chat")
    for whole, said in rows:
        question, _, answer = whole.partition("<|im_end|>\n<|im_start|>assistant\n")
        assert question.startswith("<|im_start|>user\n")
        assert len(items_in(answer)) == 1
        assert items_in(said) == items_in(question) + items_in(answer), "every item is supervised, and nothing else"
        assert "".join(f"[{i}]" for i in items_in(said)) == said


def test_title_history_to_sid():
    for whole, said in read_aloud("titles_to_sid"):
        titles = whole.partition("first: ")[2].partition("; Which")[0].split("; ")
        (target,) = items_in(said)
        assert said == f"[{target}]"
        assert 1 <= len(titles) <= 4
        past = [CATALOGUE.titles.index(title) for title in titles]
        assert any(in_log(items, past, target) for items in user_logs())


def test_sid_history_to_title():
    for whole, said in read_aloud("history_to_title"):
        target = CATALOGUE.titles.index(said.removesuffix("<eos>"))
        assert any(in_log(items, items_in(whole), target) for items in user_logs())


@pytest.mark.parametrize(("task", "texts", "answers_in_text"), [
    ("sid_to_title", CATALOGUE.titles, True),
    ("title_to_sid", CATALOGUE.titles, False),
    ("sid_to_description", CATALOGUE.descriptions, True),
    ("description_to_sid", CATALOGUE.descriptions, False),
    ("caption", tuple(CATALOGUE.texts()), True),
])  # fmt: skip
def test_items_and_their_texts(task, texts, answers_in_text):
    rows = read_aloud(task)
    known = [item for item, text in enumerate(texts) if text]
    assert len(rows) == len(known), "an item without the text has no example"
    for item, (whole, said) in zip(known, rows):
        assert items_in(whole) == [item]
        assert texts[item] in whole
        assert said == (texts[item] + "<eos>" if answers_in_text else f"[{item}]")


def test_summary_answers_with_the_given_profile():
    rows = read_aloud("summary")
    assert len(rows) == 3
    for row, (whole, said) in enumerate(rows):
        assert items_in(whole) == LOG[row].tolist()[-4:]
        assert said == f"likes tents, user {LOG.user[row]}<eos>"


def test_persona_tells_of_the_favourite_category_and_of_the_latest_items():
    for whole, said in read_aloud("persona"):
        assert whole.endswith(said), "all of it is supervised but the very first token"
        items = items_in(whole)
        candidates = [log for log in user_logs() if in_log(log, items[:-1], items[-1])]
        assert candidates
        for item in items[:-1]:
            assert f"[{item}] ({CATALOGUE.titles[item]}), " in whole
        if "many things" not in whole:
            kind = whole.partition("mostly chooses ")[2].partition(".")[0]
            assert any(path and path[-1] == kind for path in CATALOGUE.categories)


def test_the_favourite_is_the_most_frequent_category():
    log = Sequences(np.array([0]), np.array([1, 2, 4, 6, 7, 9]), np.array([0, 6]))
    context = TaskContext(log, CATALOGUE, 20, seed=3)
    told = [TASKS["persona"](replace(context, epoch=e)) for e in range(30)]
    past = [e.ref[(e.kind == 1)][:-1].tolist() for e in told]
    for examples, items in zip(told, past):
        named = [CATALOGUE.categories[i][-1] if CATALOGUE.categories[i] else "" for i in items]
        counts = {kind: named.count(kind) for kind in named}
        said = examples.texts[examples.ref[0]].removeprefix("This user mostly chooses ")
        said = "" if said.startswith("This user") else said
        assert counts[said] == max(counts.values())


def test_general_text_is_plain_in_both_templates():
    for template, end in (("plain", "<eos>"), ("chat", "<|im_end|>")):
        told = read_aloud("text", template)
        assert [whole for whole, _ in told] == [f"A first text.{end}", f"A second one.{end}"]
        assert all(whole[1:] == said for whole, said in told), "all but the first token is supervised"


def test_a_long_document_is_read_to_its_end_and_ends_once(tmp_path):
    policy, path = text_policy(), tmp_path / "text.txt"
    long = "A red tent for rainy days and a blue lamp. " * 4
    path.write_text(f"Short.\n\n{long}\n \nLast.")
    config = SftConfig(tasks=("text",), text=str(path), max_text_tokens=10, batch=100)
    (batch,) = make_feed(policy, LOG, config, 4, 0, CATALOGUE).epoch(0)
    texts = [policy.tokenizer.decode(ids) for ids in np.split(batch.rows.tokens, batch.rows.offsets[1:-1])]
    assert batch.rows.lengths.max() <= 12
    assert sorted(text for text in texts if text.endswith("<eos>"))[1:] == ["Last.<eos>", "Short.<eos>"]
    assert sum(len(text.removesuffix("<eos>")) for text in texts) == len("Short." + long.strip() + "Last.")
    assert sum(text.endswith("<eos>") for text in texts) == 3


def test_histories_without_a_title_ask_nothing():
    bare = tuple(title if item in (3, 8, 11, 19) else "" for item, title in enumerate(CATALOGUE.titles))
    some, context = replace(CATALOGUE, titles=bare), context_of()
    examples = TASKS["titles_to_sid"](replace(context, catalogue=some))
    assert 0 < len(examples) < len(TASKS["titles_to_sid"](context))
    for row in range(len(examples)):
        said = [examples.texts[n] for n in examples.take(np.array([row])).ref[1:-2]]
        assert said
        assert {text.removesuffix("; ") for text in said} <= set(bare) - {""}
    policy, contexts = text_policy(), toy_episodes(12, 20)
    asked = task_contexts(policy, contexts, some, ("titles_to_sid",), 0)
    titled = np.isin(contexts.history, (3, 8, 11, 19)).any(axis=1)
    assert 0 < len(asked) < 12
    assert asked.index.tolist() == contexts.index[titled].tolist()
    known = task_contexts(policy, contexts, CATALOGUE, ("titles_to_sid",), 0)
    assert len(known) == int((contexts.history != PAD_ITEM).any(axis=1).sum()), "an empty history asks nothing either"
    never = contexts.take(np.flatnonzero(~titled))
    with pytest.raises(ValueError, match="no history with a title"):
        task_contexts(policy, never, some, ("retrieval:1", "titles_to_sid:1"), 0)


def test_what_a_model_cannot_hold_is_found_before_the_first_step():
    policy = text_policy()
    policy.model.config.max_position_embeddings = 40
    wide = tuple(title * 12 for title in CATALOGUE.titles)
    large = replace(CATALOGUE, titles=wide)
    feed = make_feed(policy, LOG, SftConfig(tasks=("retrieval", "title_to_sid"), max_text_tokens=60), 4, 0, large)
    with pytest.raises(ValueError, match=r"task title_to_sid has \d+ tokens, this model reads 40: lower sft\.max"):
        feed.epoch(0)
    with pytest.raises(ValueError, match="a question of title_to_sid has"):
        task_contexts(policy, toy_episodes(4, 20), large, ("title_to_sid",), 0)
    made = []
    feed = make_feed(policy, LOG, SftConfig(tasks=("retrieval",), packed=True, batch=3), 4, 0)
    feed.renderer = SimpleNamespace(render=lambda examples: made.append(1) or Renderer.of(policy).render(examples))
    assert feed.steps == 12 * len(feed.epoch(0))
    assert feed.steps == 12 * len(feed.epoch(0))
    assert len(made) == 3, "steps needs one rendering, and none once the first epoch was made"


def test_cuts_move_with_the_epochs_and_nothing_else():
    first, again, later = (TASKS["titles_to_sid"](context_of(epoch=epoch)) for epoch in (0, 0, 1))
    assert np.array_equal(first.ref, again.ref)
    assert not np.array_equal(first.ref, later.ref)


def test_shares_are_of_examples_and_the_table_counts_them():
    config = SftConfig(tasks=("retrieval:0.5", "caption:0.25", "title_to_sid:1"))
    mixture = Mixture.of(config, LOG, CATALOGUE, 4, seed=0)
    examples, task = mixture.epoch(0)
    counts = np.bincount(task)
    assert counts[1] == round(counts[0] / 2)
    assert counts[2] == 2 * counts[0]
    assert len(examples) == len(task)
    lines = seen_table(mixture.names, counts, counts * 3).splitlines()
    assert lines[1].split()[:2] == ["retrieval", str(counts[0])]
    assert lines[3].split()[2] == f"{counts[2] / counts.sum():.2%}"
    rare = Mixture.of(SftConfig(tasks=("retrieval:0.9999", "caption:0.0001")), LOG, CATALOGUE, 4, seed=0).epoch(0)[1]
    assert np.bincount(rare)[1] == 1, "what is named is shown"


def test_all_of_a_large_task_is_seen_in_turn_and_a_small_one_repeats():
    mixture = Mixture.of(SftConfig(tasks=("summary:1", "title_to_sid:2"), labels="categories"), LOG, CATALOGUE, 4, 0)
    size = len(TASKS["summary"](mixture.context))
    seen = []
    for epoch in range(4):
        examples, task = mixture.epoch(epoch)
        part = examples.take(np.flatnonzero(task == 1))
        seen += part.ref[part.answer].tolist()
        assert len(part) == 2 * size
    assert set(seen) == set(range(20)), "stretches of permutations cover all items"
    counts = np.bincount(seen)
    assert counts.max() - counts.min() <= 1


def test_tasks_and_what_is_wrong_with_them():
    names = [share.name for share in parse_tasks(["retrieval:0.6", "my.module:task:0.4"])]
    assert names == ["retrieval", "my.module:task"]
    assert parse_tasks(["retrieval", "my.module:task"])[1].share is None
    for wrong in ([], ["caption", "caption"], ["retrieval:1", "caption"], ["retrieval:0"], ["retrieval:nan"]):
        with pytest.raises(ValueError, match="tasks: expected"):
            parse_tasks(wrong)
    for wrong in ("retrieval:0,66", "retrieval:"):
        with pytest.raises(ValueError, match="expected a number behind retrieval:"):
            parse_tasks([wrong])
    with pytest.raises(FileNotFoundError, match=r"sft\.text 'categories' is no file"):
        check_sft(SftConfig(tasks=("text",), text="categories"))
    for wrong in ({"template": "alpaca"}, {"precision": "half"}, {"normalise": "trie", "packed": True}):
        with pytest.raises(ValueError, match="known: "):
            check_sft(SftConfig(**wrong))
    with pytest.raises(ValueError, match="Did you mean"):
        Mixture.of(SftConfig(tasks=("captions",)), LOG, CATALOGUE, 4, 0).epoch(0)
    assert not is_packed(SftConfig())
    assert is_packed(SftConfig(packed=True))
    assert not reads_text(SftConfig(packed=True))
    assert is_packed(SftConfig(tasks=("retrieval", "caption")))
    assert is_packed(SftConfig(template="chat"))


def test_what_the_data_lack_is_named():
    bare = replace(CATALOGUE, descriptions=("",) * len(CATALOGUE))
    with pytest.raises(ValueError, match="no item of this catalogue has descriptions"):
        TASKS["sid_to_description"](TaskContext(LOG, bare))
    with pytest.raises(ValueError, match=r"sft\.labels"):
        TASKS["summary"](TaskContext(LOG, CATALOGUE))
    with pytest.raises(ValueError, match=r"sft\.text"):
        TASKS["text"](TaskContext(LOG, CATALOGUE))
    with pytest.raises(ValueError, match="retrieval alone"):
        TASKS["caption"](TaskContext(LOG))


def test_profiles_and_documents_are_read_from_files(tmp_path, capsys):
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(json.dumps({"user": user, "text": f"profile {user}"}) for user in (0, 3, 7)) + "\n\n")
    profiles, note = read_labels(str(path), LOG)
    assert profiles == {user: f"profile {user}" for user in (0, 3, 7)}
    assert note == "labels: 2 of 3 rows belong to users of SFT"
    make_feed(text_policy(), LOG, SftConfig(tasks=("summary",), labels=str(path)), 4, 0, CATALOGUE)
    assert capsys.readouterr().err == note + "\n"
    path.write_text('{"user": 3, "text": "half \\ud83d a pair"}\n{"user": 1, "text": "b"}\n')
    assert read_labels(str(path), LOG)[0][3] == "half \ufffd a pair", "what no tokenizer could read"
    path.write_text('{"user": 99999, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"0 of 1 rows belong.*data/interactions\.parquet"):
        read_labels(str(path), LOG)
    path.write_text('{"user": 1, "text": "a"}\n{"name": 2}\n')
    with pytest.raises(ValueError, match="line 2: expected"):
        read_labels(str(path), LOG)
    with pytest.raises(FileNotFoundError, match="categories"):
        read_labels(str(tmp_path / "none"), LOG)
    (tmp_path / "text.txt").write_text("One.\nStill one.\n\n\n\nTwo.\n \t\nThree.")
    assert read_documents(str(tmp_path / "text.txt")) == ("One.\nStill one.", "Two.", "Three.")


def test_counted_profiles_name_the_most_frequent_categories_first():
    log = Sequences(np.array([7, 9]), np.array([1, 2, 3, 4, 6, 8, 0]), np.array([0, 6, 7]))
    found = category_profiles(log, CATALOGUE)
    assert found == {7: "Likes Tent, Lamp, Kettle."}, "items 1 to 3 are tents, 4 and 6 lamps, 8 a kettle; 0 has none"


def test_rl_asks_the_questions_that_sft_showed():
    policy, contexts = text_policy("chat"), toy_episodes(8, 20)
    tasks = ("retrieval:0.5", "title_to_sid:0.5", "titles_to_sid:0.25", "description_to_sid:0.25")
    mixed = task_contexts(policy, contexts, CATALOGUE, tasks, seed=0)
    assert len(mixed) == 8 + 8 + 4 + 4
    assert len(set(mixed.index.tolist())) == len(mixed)
    assert np.array_equal(mixed.index[:8], contexts.index)
    ids, mask = prompt_arrays(policy, mixed)
    texts = [numbered(policy, row[seen]) for row, seen in zip(ids, mask)]
    plain, _ = prompt_arrays(policy, contexts)
    assert texts[0] == numbered(policy, plain[0]).replace("<pad>", "")
    sft = Renderer.of(policy).questions(TASKS["title_to_sid"](context_of(chat=True)))
    for row in range(8, 16):
        assert (mixed.history[row] == PAD_ITEM).all()
        assert np.array_equal(ids[row][mask[row]], sft[mixed.target[row]]), "token by token"
    for row in range(16, 20):
        assert mixed.history[row].tolist() in contexts.history.tolist()
        assert all(CATALOGUE.titles[i] in texts[row] for i in mixed.history[row] if i != PAD_ITEM)
    assert all(CATALOGUE.descriptions[mixed.target[row]] in texts[row] for row in range(20, 24))
    assert task_contexts(policy, contexts, CATALOGUE, ("retrieval",), 0) is contexts
    with pytest.raises(ValueError, match="caption cannot be rolled out as a SID"):
        task_contexts(policy, contexts, CATALOGUE, ("retrieval:1", "caption:1"), 0)
