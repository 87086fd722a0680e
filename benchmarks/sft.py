"""How fast supervised training is against ``transformers.Trainer`` on the same examples.

    python benchmarks/sft.py [--quick] [--out FILE]

Examples of a mixture of tasks, tokenised once: items and texts of the simulated store, histories as unequal as those of
a real log (``skewed_log``). One pass over all of them a round, with the same number of examples an optimiser step,
AdamW, and the same loss (compared before anything is timed). Contestants:

    packed              passes without padding, logits where something is supervised
    packed_sid          the same, and only the SID tokens' logits where the target is a SID
    trainer             Trainer, examples in random order padded to the longest of their step
    trainer_by_length   Trainer with examples of like length together, which wastes the least

In turns, one thread; ratios are medians over rounds of seconds over packed's, by the clock, and of processor seconds,
which other work on the machine disturbs less. Tokens are those of the examples, without padding. Then histories alone,
and the mixture with a vocabulary of 151,936 words. The last line printed is one JSON object; ``packed_vs_trainer`` is
that of the mixture. It is above all the padding, which these unequal histories make large (``padded_vs_tokens``) and
which ``packed_vs_trainer_by_length``, to be quoted beside it, has less of: where histories are nearly all full it is
about 2. One seed; ``--quick`` times one optimiser step a contestant.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sidgym.agents.config import PolicyConfig, SftConfig
from sidgym.agents.mixture import Mixture
from sidgym.agents.policy import Policy, build_policy
from sidgym.agents.sft_learner import Learner
from sidgym.agents.sft_packed import packed_loss, token_parts
from sidgym.agents.templates import SILENT, Renderer, TokenRows
from sidgym.benchmarks.script import main, random_codes
from sidgym.envs.config import DataConfig
from sidgym.envs.datasets import load_dataset
from sidgym.envs.records import Sequences
from sidgym.sid.table import SidTable

MIXTURE = ("retrieval:0.6573", "persona:0.2430", "caption:0.0494", "title_to_sid:0.0503")
"""OneRec-Think's shares, with titles for the general text, which a simulated store does not have."""
SHAPE = PolicyConfig(hidden_size=128, intermediate_size=384, layers=3, heads=4, kv_heads=2)
WORDS = 151_936
"""Vocabulary of Qwen's models."""
BATCH = 128
"""Examples an optimiser step (MiniOneRec: 128 samples a GPU)."""
FEW = 8
"""Of them with the large vocabulary, where the logits of 128 padded examples are 19 GB."""
HISTORY = 50
"""Items of a history at most, the field's custom on Amazon's logs; the project's default is 20."""
LR = 1e-3
IGNORED = -100

Seconds = tuple[float, float]
"""By the clock, and of the processor."""


def now() -> Seconds:
    """The two clocks."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    """Seconds since ``start``."""
    end = now()
    return end[0] - start[0], end[1] - start[1]


@dataclass(frozen=True)
class Contest:
    """A model and the examples that everybody passes over once."""

    policy: Policy
    rows: TokenRows
    batch: int  # examples a step

    @property
    def tokens(self) -> int:
        return len(self.rows.tokens)

    @property
    def padded(self) -> float:
        """Tokens with padding over tokens, of steps in random order."""
        order = np.random.default_rng(0).permutation(len(self.rows))
        steps = [order[at : at + self.batch] for at in range(0, len(order), self.batch)]
        widths, sizes = [int(self.rows.lengths[step].max()) for step in steps], [len(step) for step in steps]
        return float(np.dot(widths, sizes) / self.tokens)


def skewed_log(users: int, items: int, rng: np.random.Generator) -> Sequences:
    """Random items, with lengths as in the 5-core log of Amazon Beauty without its two held-out events: 5 events at
    least, 8.8 on average, more than 38 of one user in a hundred (there 43), 4 + Lomax(2.5, 6.5) rounded up."""
    sizes = 2 + np.ceil(6.5 * rng.pareto(2.5, users)).astype(np.int64)
    return Sequences(np.arange(users), rng.integers(0, items, sizes.sum()), np.append(0, np.cumsum(sizes)))


def make_contest(
    tasks: tuple[str, ...], examples: int, history: int, seed: int, vocabulary: int = 0, batch: int = 0
) -> Contest:
    """``examples`` random ones of an epoch of ``tasks``, and a model with random weights."""
    catalogue = load_dataset(DataConfig(users=50), seed).catalogue
    rng, count = np.random.default_rng(seed), len(catalogue)
    config = SftConfig(tasks=tasks, packed=True)
    mixture = Mixture.of(config, skewed_log(examples, count, rng), catalogue, history, seed)
    sizes = (32, 32, 32)
    table = SidTable(random_codes(count, sizes, rng), sizes, catalogue.ids, {})
    policy = build_policy(SHAPE, table, seed, mixture.words())
    if vocabulary:
        policy.model.resize_token_embeddings(vocabulary, mean_resizing=False)
    rows = Renderer.of(policy, config.max_text_tokens).render(mixture.epoch(0)[0])
    return Contest(policy, rows.take(rng.permutation(len(rows))[:examples]), batch or BATCH)


def packed(contest: Contest, normalise: str, policy: Policy | None = None) -> Seconds:
    """Seconds of one pass over the examples by this project's own steps, which train ``policy``, or a copy."""
    policy = (policy or copy.deepcopy(contest.policy)).train()
    learner = Learner(policy, SftConfig(lr=LR, weight_decay=0.0), 0)
    start = now()
    order = np.random.default_rng(0).permutation(len(contest.rows))
    for step, part in enumerate(token_parts(np.ones(len(order), dtype=np.int64), contest.batch)):
        learner.begin(step)
        rows = contest.rows.take(order[part])
        count = int((rows.loss != SILENT).sum())
        learner.step([lambda rows=rows: packed_loss(policy, rows, normalise)[0]], count, LR)  # type: ignore[misc]
    return since(start)


def as_lists(rows: TokenRows) -> list[dict[str, list[int]]]:
    """Examples as Trainer takes them."""
    labels = np.where(rows.loss != SILENT, rows.tokens, IGNORED)
    parts = (np.split(values, rows.offsets[1:-1]) for values in (rows.tokens, labels))
    return [{"input_ids": ids.tolist(), "labels": said.tolist()} for ids, said in zip(*parts)]


def collator(pad: int) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    """Pads on the right to the longest of a step."""

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(one["input_ids"]) for one in examples)
        fills = {"input_ids": pad, "labels": IGNORED}
        batch = {
            name: torch.tensor([one[name] + [fill] * (width - len(one[name])) for one in examples])
            for name, fill in fills.items()
        }
        lengths = torch.tensor([len(one["input_ids"]) for one in examples])
        return {**batch, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}

    return collate


def trainer(contest: Contest, by_length: bool, policy: Policy | None = None) -> Seconds:
    """Seconds of one pass over the examples by ``transformers.Trainer``, without its preparations. It trains
    ``policy``, or a copy."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    class Clock(TrainerCallback):
        start = spent = (0.0, 0.0)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = now()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.spent = since(self.start)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=contest.batch,
            num_train_epochs=1,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            train_sampling_strategy="group_by_length" if by_length else "random",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        runner: Any = Trainer(
            model=(policy or copy.deepcopy(contest.policy)).model,
            args=arguments,
            train_dataset=as_lists(contest.rows),  # type: ignore[arg-type]
            data_collator=collator(contest.policy.tokens.pad),
            callbacks=[clock],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            runner.remove_callback(noisy)
        runner.train()
    return clock.spent


@torch.no_grad()
def loss_difference(contest: Contest) -> float:
    """Relative difference of the mean loss of the first examples, padded through the model's own loss, and packed."""
    rows = contest.rows.take(np.arange(contest.batch))
    policy = contest.policy.eval()
    batch = collator(policy.tokens.pad)(as_lists(rows))
    theirs = float(policy.model(**batch).loss)
    total, count = packed_loss(policy, rows)
    return abs(float(total) / count - theirs) / theirs


def compare(title: str, contest: Contest, rounds: int) -> dict[str, Any]:
    """All contestants in turns: tokens a second, and how many times packed's seconds the others take."""
    difference = loss_difference(contest)
    if not difference < 1e-4:
        raise RuntimeError(f"the contestants' losses differ by {difference:.2g}: they do not do the same work")
    arms: dict[str, Callable[[], Seconds]] = {
        "packed": lambda: packed(contest, "vocab"),
        "packed_sid": lambda: packed(contest, "sid"),
        "trainer": lambda: trainer(contest, by_length=False),
        "trainer_by_length": lambda: trainer(contest, by_length=True),
    }
    times: dict[str, list[Seconds]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            seconds = arm()
            if number:  # the first round warms up
                times[name].append(seconds)
    first = np.array(times["packed"])
    figures: dict[str, Any] = {
        "examples": len(contest.rows),
        "tokens": contest.tokens,
        "supervised": int((contest.rows.loss != SILENT).sum()),
        "vocabulary": int(contest.policy.model.config.vocab_size),
        "batch": contest.batch,
        "padded_vs_tokens": contest.padded,
        "loss_difference": difference,
    }
    for name, values in times.items():
        figures[f"{name}_tokens_per_s"] = contest.tokens / float(np.median(values, axis=0)[0])
        if name != "packed":
            ratios = np.array(values) / first
            figures[f"{name}_vs_packed"], figures[f"{name}_vs_packed_cpu"] = np.median(ratios, axis=0).tolist()
            figures[f"{name}_ratios"] = ratios[:, 0].tolist()
    said = f"packed {figures['packed_tokens_per_s']:,.0f} tokens a second; times its seconds (processor seconds): "
    others = (f"{n} {figures[f'{n}_vs_packed']:.2f} ({figures[f'{n}_vs_packed_cpu']:.2f})" for n in list(times)[1:])
    print(f"{title}: {said}{', '.join(others)}", flush=True)
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All comparisons. ``ValueError`` for more than one seed."""
    if len(options.seeds) > 1:
        raise ValueError(f"expected one seed, got {options.seeds}: run the script once a seed")
    torch.set_num_threads(1)
    quick, seed = options.quick, options.seeds[0]
    rounds, size = (1, BATCH) if quick else (3, 16 * BATCH)
    mixture = compare("mixture", make_contest(MIXTURE, size, HISTORY, seed), rounds)
    result: dict[str, Any] = {
        "packed_vs_trainer": mixture["trainer_vs_packed"],
        "packed_vs_trainer_cpu": mixture["trainer_vs_packed_cpu"],
        "packed_vs_trainer_by_length": mixture["trainer_by_length_vs_packed"],
        "rounds": rounds,
        "batch": BATCH,
        "tasks": list(MIXTURE),
        "mixture": mixture,
        "history": HISTORY,
        "histories": compare("histories", make_contest(("retrieval",), size, HISTORY, seed), rounds),
    }
    if not quick:
        short = make_contest(("retrieval",), size, 20, seed)
        result["histories_20"] = compare("histories of 20", short, rounds)
        wide = make_contest(MIXTURE, 6 * FEW, HISTORY, seed, WORDS, FEW)
        result["vocabulary_151936"] = compare(f"{WORDS} words", wide, 2)
    return result


if __name__ == "__main__":
    main("sft", __doc__ or "", measure, packages=("transformers", "accelerate"))
