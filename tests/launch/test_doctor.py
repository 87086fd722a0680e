"""``sidgym doctor``: a set-up in order has no error, and every fault that it looks for is found and explained."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sidgym.agents.checkpoint import save_policy
from sidgym.agents.config import PolicyConfig
from sidgym.agents.merger import FILE
from sidgym.agents.policy import build_policy
from sidgym.agents.tokens import fresh_tokenizer
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.splits import save_splits, split
from sidgym.launch import doctor_versions
from sidgym.launch.cli import main
from sidgym.launch.doctor import check_settings, check_stages, examine
from sidgym.launch.doctor_policy import corrupting
from sidgym.launch.stages import environment_record, run_stage
from sidgym.sid.table import SidTable

TINY = PolicyConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2, kv_heads=1)
ITEMS = 40
RL = {"group_size": 8, "mode": "beam", "environment": "next_item", "backend": "torch", "engine": "torch"}
INSTRUCT = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.05,
    "eos_token_id": [1, 0],
    "transformers_version": "4.40",
}


def toy_table(seed=0):
    flat = np.random.default_rng(seed).choice(4 * 5 * 6, ITEMS, replace=False)
    codes = np.stack(np.unravel_index(flat, (4, 5, 6)), axis=1)
    return SidTable(codes, (4, 5, 6), np.array([f"i{row:04d}" for row in range(ITEMS)]), {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's folder with data, table and one policy, all in order."""
    run = tmp_path_factory.mktemp("doctor") / "run"
    config = DataConfig(users=60, items=ITEMS)
    dataset = load_dataset(config, 0)
    splits, table = split(dataset, config, 0), toy_table()
    policy = build_policy(TINY, table, 0)

    def data(work):
        dataset.save(work)
        save_splits(splits, work)

    def sid(work):
        table.save(work)
        np.save(work / "embeddings.npy", np.ones((ITEMS, 3), np.float32))

    run_stage(run / "data", "data", "h-data", data, inputs={"needs": []})
    run_stage(run / "sid", "sid", "h-sid", sid, inputs={"sid": {}, "needs": ["h-data"]})
    run_stage(run / "sft", "sft", "h-sft", lambda work: save_policy(work, policy), inputs={"needs": ["h-sid"]})
    run_stage(run / "rl", "rl", "h-rl", lambda work: save_policy(work, policy), inputs={"rl": RL, "needs": ["h-sft"]})
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def errors(path):
    return [f"{finding.check}: {finding.what}" for finding in examine(path) if finding.level == "error"]


def warnings(path):
    return [f"{finding.check}: {finding.what}" for finding in examine(path) if finding.level == "warning"]


def rewrite(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def test_a_run_in_order(whole, capsys):
    main(["doctor", str(whole)])  # no exit status
    out = capsys.readouterr().out
    assert "0 errors, 0 warnings, " in out
    tokens = ("each one indivisible", "a finite one for each of 15 SID tokens", "nothing in them changes")
    whole_run = (
        "4 stages are complete",
        "every SID is one item",
        "table, trie and checkpoint agree",
        "group_size is 8",
    )
    for part in (*tokens, *whole_run, "versions: torch"):
        assert part in out
    assert "\x1b" not in out


def test_errors_are_explained_and_give_exit_status_1(run, capsys):
    (run / "rl" / "generation_config.json").write_text(json.dumps(INSTRUCT))
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(run / "rl")])
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("error"))
    assert "temperature 0.7" in lines[place]
    assert lines[place + 1].strip().startswith("why: ")
    assert "punishes the codes that stand in the history" in lines[place + 1]
    assert lines[place + 2].strip().startswith("do: remove them")
    assert lines[-1].startswith("1 error, 0 warnings, ")


def test_generation_settings_that_change_a_beam():
    assert list(corrupting(INSTRUCT)) == ["do_sample", "temperature", "top_k", "top_p", "repetition_penalty"]
    harmless = {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": None,
        "top_p": 1,
        "repetition_penalty": 1.0,
        "max_length": 9,
    }
    assert corrupting(harmless) == {}
    assert list(corrupting({"suppress_tokens": [3], "no_repeat_ngram_size": 3, "forced_eos_token_id": 0})) == [
        "no_repeat_ngram_size", "suppress_tokens", "forced_eos_token_id"]  # fmt: skip
    assert corrupting({"top_k": -1, "penalty_alpha": 0.0, "watermarking_config": None}) == {}
    rarer = {"penalty_alpha": 0.6, "exponential_decay_length_penalty": [5, 1.1], "watermarking_config": {"bias": 2.5}}
    assert corrupting(rarer) == rarer


def test_a_policy_that_merges_items_needs_a_whole_merger(tmp_path):
    folder = tmp_path / "policy"
    save_policy(folder, build_policy(replace(TINY, merge_items=True), toy_table(), 0))
    assert errors(folder) == []
    whole = load_file(folder / FILE)
    for spoilt, said in (
        ({**whole, "bias": torch.full((16,), float("nan"))}, "bias of item_merger.safetensors not finite"),
        ({**whole, "weight": torch.zeros(16, 32)}, "expected {'weight': (16, 48), 'bias': (16,)}"),
    ):
        save_file(spoilt, folder / FILE)
        assert [said in text for text in errors(folder)] == [True]
    (folder / FILE).write_bytes(b"cut")
    assert ["cannot be read" in text for text in errors(folder)] == [True]
    (folder / FILE).unlink()
    assert [text.partition(": ")[2] for text in errors(folder)] == ["item_merger.safetensors is missing"]
    save_file(whole, folder / FILE)
    rewrite(folder / "sidgym.json", merge_items=False)
    assert ["sidgym.json says nothing of it" in text for text in errors(folder)] == [True]


def test_a_plain_model_directory(run, tmp_path, capsys):
    model = tmp_path / "instruct"
    shutil.copytree(run / "rl", model, ignore=shutil.ignore_patterns("sid", "sidgym.json", "stage.json"))
    assert errors(model) == []
    (model / "generation_config.json").write_text(json.dumps(INSTRUCT))
    assert [text for text in errors(model) if "generation settings" in text]
    # As the base of a run it is only remarked on: the policy was given clean settings.
    record = json.loads((run / "sft" / "stage.json").read_text())
    rewrite(run / "sft" / "stage.json", inputs={**record["inputs"], "policy": {"path": str(model)}})
    assert errors(run) == []
    assert [text for text in warnings(run) if "instruct generation settings" in text]
    (model / "generation_config.json").write_text("{")
    assert [text for text in errors(model) if "not valid JSON" in text]
    shutil.rmtree(model)
    assert [text for text in warnings(run) if "not there any more" in text]


def test_tokens_that_the_tokenizer_lacks(run):
    fresh_tokenizer().save_pretrained(run / "rl")
    found = errors(run / "rl")
    assert len(found) == 1
    assert "lacks 16 of 16 SID tokens (<|history|>, <a_0>, <a_1> ...)" in found[0]


def test_tokens_that_are_split(run):
    """Codes that are ordinary words of the vocabulary instead of added tokens are cut at < and >."""
    path = run / "rl" / "tokenizer.json"
    values = json.loads(path.read_text())
    moved = [token for token in values["added_tokens"] if token["content"].startswith("<b_")]
    values["added_tokens"] = [token for token in values["added_tokens"] if token not in moved]
    values["model"]["vocab"] |= {token["content"]: token["id"] for token in moved}
    path.write_text(json.dumps(values))
    rewrite(run / "rl" / "tokenizer_config.json", extra_special_tokens=[], added_tokens_decoder={})
    assert any("5 SID tokens are split" in text and "<b_0>" in text for text in errors(run / "rl"))


def test_a_tokenizer_that_cannot_be_read(run):
    (run / "rl" / "tokenizer.json").write_text("{")
    assert [text for text in errors(run / "rl") if text.startswith("rl tokenizer: it cannot be loaded")]


def test_hashes_of_another_table(run):
    toy_table(1).save(run / "rl" / "sid")
    found = errors(run)
    assert sum("sid_hash of sidgym.json" in text for text in found) == 1
    assert sum("trie_hash of sidgym.json" in text for text in found) == 1
    assert sum("is not the run's" in text for text in found) == 1
    shutil.rmtree(run / "rl" / "sid")
    assert any(text.startswith("rl checkpoint") for text in errors(run))


def test_a_table_that_has_grown_belongs_to_the_run(run):
    from sidgym.agents.grow import grow_checkpoint

    table = SidTable.load(run / "sid")
    grown = table.extend(np.array(["new"]), np.array([[3, 4, 5]]), collisions="keep")
    grow_checkpoint(run / "rl", grown, run / "rl_grown", 0)
    assert errors(run) == []
    assert any("the run's with 1 item added" in finding.what for finding in examine(run))


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_rows_that_mean_nothing(run, value):
    weights = load_file(run / "rl" / "model.safetensors")
    weights["model.embed_tokens.weight"][-3:] = value
    save_file(weights, run / "rl" / "model.safetensors", {"format": "pt"})
    assert [text for text in errors(run / "rl") if "rl weights: of 15 SID tokens" in text]


def test_weights_that_are_too_few_or_cut_off(run):
    weights = load_file(run / "rl" / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:10].clone()
    save_file(weights, run / "rl" / "model.safetensors", {"format": "pt"})
    assert [text for text in errors(run / "rl") if "the embedding table has 10 rows" in text]
    (run / "rl" / "model.safetensors").write_bytes(b"cut")
    assert [text for text in errors(run / "rl") if "rl weights: they cannot be read" in text]


def test_an_end_token_inside_a_sid(run):
    (run / "rl" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    assert [text for text in errors(run / "rl") if "eos_token_id is a SID token" in text]


@pytest.mark.parametrize("value", ["</s>", ["</s>"], [1, None], 1.5, True, -1, {"a": 1}])
def test_end_tokens_that_are_no_ids(run, value):
    (run / "rl" / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert [text for text in errors(run / "rl") if "expected token ids" in text] == [
        f"rl generation settings: eos_token_id is {value!r}, expected token ids: integers from 0 on"
    ]
    (run / "rl" / "generation_config.json").write_text('{"eos_token_id": [1, 99999999999]}')
    assert errors(run / "rl") == []


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{"])
def test_a_record_of_a_policy_that_is_no_object(run, content):
    (run / "rl" / "sidgym.json").write_text(content)
    for path in (run, run / "rl"):
        (found,) = errors(path)
        assert found.startswith("rl checkpoint: ")
    if content != "{":
        assert "sidgym.json: expected a JSON object, got " in found


def test_a_policy_that_lost_its_record(run):
    shutil.copytree(run / "sft", run / "copied", ignore=shutil.ignore_patterns("stage.json", "sidgym.json"))
    assert any(text.startswith("copied checkpoint: ") for text in errors(run))
    shutil.rmtree(run / "copied")
    (run / "sft" / "sidgym.json").unlink()
    for path in (run, run / "sft"):
        assert any(text.startswith("sft checkpoint: ") and "it has no sidgym.json" in text for text in errors(path))
    shutil.rmtree(run / "sft" / "sid")
    (run / "sft" / "config.json").unlink()
    assert any("it has no sidgym.json" in text for text in errors(run))  # its stage's record says what it was


@pytest.mark.parametrize("name", ["data", "sid", "sft", "rl"])
def test_a_stage_without_its_record_is_named_and_no_other(run, name):
    (run / name / "stage.json").unlink()
    assert errors(run) == [f"stage {name}: it has no stage.json"]


def test_unfinished_folders_are_no_stages(run):
    for name in ("rl.building", "rl.partial", "rl.partial-abc"):
        shutil.copytree(run / "rl", run / name)
        rewrite(run / name / "stage.json", complete=False, inputs={"needs": ["gone"]})
        (run / name / "sidgym.json").write_text("{")
    assert errors(run) == []
    assert sum("is unfinished" in text for text in warnings(run)) == 2


def test_stages_that_do_not_belong_together(run):
    rewrite(run / "sid" / "stage.json", inputs_hash="another")
    assert [text for text in errors(run) if text.startswith("stage sft: it was built from stages")]
    rewrite(run / "sid" / "stage.json", inputs_hash="h-sid", complete=False)
    assert [text for text in errors(run) if text.startswith("stage sid: its record")]
    (run / "rl_x.partial").mkdir()
    assert [text for text in warnings(run) if "rl_x.partial is unfinished" in text]
    named = sorted(finding.check for finding in check_stages(run, {}))
    assert named == ["stage data", "stage rl", "stage sft", "stage sid", "stages"]


def test_what_belongs_to_the_table(run):
    np.save(run / "sid" / "embeddings.npy", np.full((ITEMS, 3), np.nan))
    assert [text for text in errors(run) if text.startswith("embeddings: ") and "not finite" in text]
    np.save(run / "sid" / "embeddings.npy", np.ones((3, 3)))
    assert [text for text in errors(run) if "shape (3, 3) for 40 items" in text]
    (run / "sid" / "embeddings.npy").write_bytes(b"")
    assert [text for text in errors(run) if "cannot be read" in text]
    table = SidTable.load(run / "sid")
    SidTable(np.zeros_like(table.codes), table.sizes, table.item_ids, {}).save(run / "sid")
    assert [text for text in warnings(run) if "40 of 40 items share their SID" in text]
    (run / "sid" / "table.json").write_text("{")
    assert [text for text in errors(run) if text.startswith("table: ") and "not valid JSON, perhaps truncated" in text]


def test_a_table_of_another_catalogue(run):
    table = SidTable.load(run / "sid")

    def saved(codes, ids):
        SidTable(codes, table.sizes, ids, {}).save(run / "sid")
        return [text for text in errors(run) if text.startswith("data: ")]

    (text,) = saved(table.codes, table.item_ids[[1, 0, *range(2, ITEMS)]])
    assert "item 0 is 'i0000' there and 'i0001' in the table" in text
    (text,) = saved(table.codes[:-1], table.item_ids[:-1])
    assert "the catalogue (40 items) is not that of the table (39): item 39 is 'i0039' there and nothing" in text
    assert saved(table.codes[[*range(ITEMS), 0]], np.array([*table.item_ids, "new"])) == []  # added later
    assert any("and 1 item added to the table" in finding.what for finding in examine(run))


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "ok"),
        ({"group_size": 21}, "warning"),
        ({"group_size": 41}, "error"),
        ({"group_size": 41, "mode": "stochastic_beam"}, "error"),
        ({"group_size": 41, "mode": "sample"}, "warning"),
        ({"group_size": 41, "mode": "top_k"}, "warning"),
        ({"group_size": 41, "mode": "dynamic"}, "warning"),
        ({"group_size": 41, "mode": "free"}, "warning"),
        ({"environment": "page", "page_size": 41, "group_size": 4}, "error"),
        ({"environment": "page", "page_size": 5, "group_size": 100}, "ok"),
    ],
)
def test_group_size_against_catalogue_size(changes, level):
    findings = list(check_settings({"rl": {"inputs": {"rl": {**RL, **changes}}}}, toy_table()))
    assert [finding.level for finding in findings] == [level]
    beam = list(check_settings({"evaluate/rl": {"inputs": {"eval": {"beam": 50}}}}, toy_table()))
    assert [finding.level for finding in beam] == ["warning"]


def test_versions_and_packages(run, monkeypatch):
    now = environment_record()
    old = {**now, "packages": {**now["packages"], "torch": "1.0"}}
    rewrite(run / "rl" / "stage.json", environment=old)
    assert [text for text in warnings(run) if text.startswith("versions: stages were built with torch 1.0 (now ")]
    real = doctor_versions.importlib.util.find_spec
    monkeypatch.setattr(doctor_versions.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    assert not [text for text in errors(run) if text.startswith("packages: ")]
    rewrite(run / "rl" / "stage.json", inputs={"rl": {**RL, "backend": "rllib"}, "needs": ["h-sft"]})
    assert [text for text in errors(run) if "ray is not installed" in text]
    needs = doctor_versions._needed([{"rl": {**RL, "engine": "vllm", "lora_rank": 4, "backend": "fsdp"}}, {}])
    assert set(needs) == {"vllm", "peft", "ray"}
    assert not [one for one in examine(run) if one.level == "ok" and "not needed" in one.what]


def test_versions_outside_the_requirements(whole, monkeypatch):
    monkeypatch.setattr(
        doctor_versions.importlib.metadata, "requires", lambda name: ["numpy<1", "torch>1", "nothere>1"]
    )
    found = [text for text in warnings(whole) if "sidgym asks for" in text]
    assert len(found) == 1
    assert "<1" in found[0]


def test_seeds_are_all_looked_at(run, tmp_path):
    (tmp_path / "many").mkdir()
    for seed in range(2):
        shutil.copytree(run, tmp_path / "many" / f"seed-{seed}")
    toy_table(1).save(tmp_path / "many" / "seed-1" / "rl" / "sid")
    found = errors(tmp_path / "many")
    assert found
    assert all(text.startswith("seed-1 ") for text in found)


@pytest.mark.parametrize("content", ["[]", '{"inputs": 3, "environment": [], "complete": true}', "{"])
def test_records_of_another_form_end_in_no_traceback(run, content):
    for name in ("rl", "sft"):
        (run / name / "stage.json").write_text(content)
    assert list(examine(run))


def test_bad_input_is_one_line(tmp_path, capsys):
    for path, words in ((tmp_path / "nothing", "does not exist"), (tmp_path, "neither a run")):
        with pytest.raises(SystemExit) as stop:
            main(["doctor", str(path)])
        assert stop.value.code == 2
        message = capsys.readouterr().err.strip()
        assert words in message
        assert len(message.splitlines()) == 1
