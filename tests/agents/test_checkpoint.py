"""Checkpoints: round trip, transformers opens them, other catalogues and schemas are refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import TINY, toy_episodes, toy_policy, toy_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidgym.agents.checkpoint import (
    CheckpointError,
    load_policy,
    load_training,
    optimizer_tensors,
    restore_optimizer,
    save_policy,
    save_training,
)
from sidgym.agents.config import PolicyConfig
from sidgym.agents.engine import TorchEngine
from sidgym.agents.policy import build_policy
from sidgym.agents.tokens import HISTORY_TOKEN


@pytest.fixture
def saved(tmp_path):
    policy = toy_policy(toy_table())
    save_policy(tmp_path / "policy", policy, {"history": 5})
    return policy, tmp_path / "policy"


def test_round_trip_gives_the_same_rollouts(saved):
    policy, path = saved
    episodes = toy_episodes(4, 30)
    first = TorchEngine(policy).rollout(episodes, 5)
    second = TorchEngine(load_policy(path)).rollout(episodes, 5)
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.logp, second.logp)


def test_transformers_opens_it_and_codes_are_single_tokens(saved):
    policy, path = saved
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    for mine, theirs in zip(policy.model.parameters(), model.parameters()):
        assert torch.equal(mine, theirs)
    names = [name for level in policy.table.tokens() for name in level]
    for name in [HISTORY_TOKEN, *names]:
        assert len(tokenizer.encode(name, add_special_tokens=False)) == 1
    joined = "".join(names[:3])
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(joined, add_special_tokens=False)) == names[:3]
    generation = json.loads((path / "generation_config.json").read_text())
    assert not {"temperature", "top_p", "top_k", "do_sample"} & {k for k, v in generation.items() if v is not None}


def test_another_catalogue_is_refused(saved):
    _, path = saved
    with pytest.raises(CheckpointError, match="another catalogue"):
        load_policy(path, toy_table(seed=9))


def test_a_swapped_table_is_noticed(saved):
    _, path = saved
    toy_table(seed=9).save(path / "sid")
    with pytest.raises(CheckpointError, match="not the one"):
        load_policy(path)


def test_another_schema_and_a_plain_folder_are_refused(saved, tmp_path):
    _, path = saved
    info = json.loads((path / "sidgym.json").read_text())
    (path / "sidgym.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(CheckpointError, match="99"):
        load_policy(path)
    with pytest.raises(CheckpointError, match="no sidgym checkpoint"):
        load_policy(tmp_path)


def test_optimiser_goes_on_bit_for_bit(tmp_path):
    def train(policy, optimizer, steps):
        for k in range(steps):
            torch.manual_seed(k)
            optimizer.zero_grad()
            sum((p * torch.randn_like(p)).sum() for p in policy.model.parameters()).backward()
            optimizer.step()

    whole = toy_policy(toy_table())
    train(whole, torch.optim.AdamW(whole.model.parameters(), lr=1e-2), 4)

    halves = toy_policy(toy_table())
    optimizer = torch.optim.AdamW(halves.model.parameters(), lr=1e-2)
    for k in range(2):
        torch.manual_seed(k)
        optimizer.zero_grad()
        sum((p * torch.randn_like(p)).sum() for p in halves.model.parameters()).backward()
        optimizer.step()
    save_training(tmp_path / "state", optimizer_tensors(optimizer), {"step": 2})
    tensors, position = load_training(tmp_path / "state")
    assert position["step"] == 2
    again = torch.optim.AdamW(halves.model.parameters(), lr=1e-2)
    restore_optimizer(again, tensors)
    for k in (2, 3):
        torch.manual_seed(k)
        again.zero_grad()
        sum((p * torch.randn_like(p)).sum() for p in halves.model.parameters()).backward()
        again.step()
    for a, b in zip(whole.model.parameters(), halves.model.parameters()):
        assert torch.equal(a, b)


def test_a_local_checkpoint_gains_the_sid_tokens(tmp_path):
    """A saved model of another vocabulary, as a user would bring one."""
    small = toy_policy(toy_table(5, (2, 2, 2)))
    with torch.no_grad():
        small.model.get_input_embeddings().weight.normal_()
    small.model.generation_config.temperature = 0.3
    small.model.generation_config.do_sample = True
    small.model.save_pretrained(tmp_path / "base")
    small.tokenizer.save_pretrained(tmp_path / "base")
    table = toy_table()
    policy = build_policy(PolicyConfig(path=str(tmp_path / "base")), table, 0)
    old = small.model.get_input_embeddings().weight
    new = policy.model.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old), "known rows are untouched"
    fresh = new[len(old) :]
    assert len(fresh) == 15 - 6
    assert (fresh - old.mean(0)).abs().max().item() < old.std().item(), "new rows start inside the known cloud"
    assert len(torch.unique(fresh, dim=0)) == len(fresh), "and differ from one another"
    assert policy.model.generation_config.temperature is None
    assert TorchEngine(policy).rollout(toy_episodes(2, 30), 4).valid.all()


def test_spare_rows_of_a_checkpoint_are_initialised_too(tmp_path):
    """Checkpoints are often padded to a round number of rows, which were never trained."""
    small = toy_policy(toy_table(5, (2, 2, 2)))
    known = len(small.tokenizer)
    small.model.resize_token_embeddings(known + 7)
    with torch.no_grad():
        small.model.get_input_embeddings().weight[known:] = 0
    small.model.save_pretrained(tmp_path / "base")
    small.tokenizer.save_pretrained(tmp_path / "base")
    policy = build_policy(PolicyConfig(path=str(tmp_path / "base")), toy_table(), 0)
    ids = torch.cat([policy.level_ids(level) for level in range(3)])
    assert (policy.model.get_input_embeddings().weight[ids].abs().sum(1) > 0).all()


def test_a_missing_model_and_an_unknown_architecture_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        build_policy(PolicyConfig(path=str(tmp_path)), toy_table(), 0)
    with pytest.raises(ValueError, match="qwen3"):
        build_policy(PolicyConfig(architecture="qwen33"), toy_table(), 0)


def test_an_architecture_with_other_logits_is_refused_by_name():
    from dataclasses import replace

    with pytest.raises(ValueError, match="cohere"):
        build_policy(replace(TINY, architecture="cohere"), toy_table(), 0)


@pytest.fixture
def brought(monkeypatch) -> list[Path]:
    """What is brought to the disk, in this order."""
    found: list[Path] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not say what a handle is of")
def test_a_policy_is_on_the_disk_with_its_folders_before_it_has_its_name_and_then_its_name(tmp_path, brought):
    save_policy(tmp_path / "policy", toy_policy(toy_table()))
    fresh = tmp_path / "policy.writing"
    assert {fresh, fresh / "sid", fresh / "model.safetensors"} <= set(brought)
    assert brought[-1] == tmp_path
    assert {path.name for path in (tmp_path / "policy/sid").iterdir()} <= {path.name for path in brought}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not say what a handle is of")
def test_a_stage_is_on_the_disk_before_its_record_says_that_it_is_complete(tmp_path, brought):
    from sidgym.launch.stages import run_stage

    def build(work: Path) -> None:
        (work / "sub").mkdir()
        (work / "sub/weights").write_text("many")

    run_stage(tmp_path / "stage", "stage", "hash", build)
    work = tmp_path / "stage.building"
    records = [number for number, path in enumerate(brought) if path.name == "stage.json.tmp"]
    assert {work, work / "sub", work / "sub/weights"} <= set(brought[records[0] : records[-1]])
    assert brought[-1] == tmp_path
