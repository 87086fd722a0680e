"""From examples to token ids: a template's markup, the texts' tokens, the items' SIDs, and what is supervised.

    plain   question, a new line, answer; a text ends with the end-of-sequence token
    chat    the tokenizer's own chat template around question and answer, of which the markup is not supervised, but for
            the token that ends a text

An example without a question is plain text in both. An answer that is a SID has a known length and needs no end. A text
is tokenised by itself, whatever stands beside it, so the same piece has the same tokens in training and in a rollout
(``literal`` says how). One that is longer than ``most`` tokens is cut, and then it has no end; the words of a task are
never cut. No token opens a sequence but what a chat template says: base checkpoints that expect one (Llama's and
Gemma's) are read without it in the plain template. A chat template that writes the date writes ``DAY``.
Where the policy merges items (``merger``), one that is only read is one id, one that is only said its codes, and a step
of a history both: its codes are a branch (``branches``).
Left out: tasks, and batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sidgym.agents.branches import needed, positions, predictors, stepped_branches
from sidgym.agents.examples import ITEM, MARK, STEP, TEXT, Examples, ragged_places
from sidgym.agents.literal import encode_texts
from sidgym.agents.tokens import FIRST_ITEM, TokenMap

TEMPLATES = ("plain", "chat")
SILENT, TEXT_LOSS, SID_LOSS = 0, 1, 2
"""What a token is to the loss: nothing, a token of a text, or a code of a SID."""

HISTORY_HEAD = "Items that a user chose, oldest first: "
HISTORY_TAIL = "\nWhich item comes next?"
"""Around a history in the chat template; the plain one is the history alone."""

DAY = datetime(2024, 7, 26)
"""Today, for a chat template that asks: a prompt must be the same on the day of training and on any later one."""

_QUESTION, _ANSWER = "sidgymquestionsidgym", "sidgymanswersidgym"


@dataclass(frozen=True)
class Template:
    """Markup as token ids."""

    name: str = "plain"
    before: tuple[int, ...] = ()  # before a question
    between: tuple[int, ...] = ()  # between question and answer
    end: tuple[int, ...] = ()  # behind a text


@dataclass(frozen=True)
class TokenRows:
    """R examples as tokens."""

    tokens: np.ndarray  # (T,) int64, example after example
    loss: np.ndarray  # (T,) int8, one of SILENT, TEXT_LOSS, SID_LOSS; SILENT for an example's first token
    offsets: np.ndarray  # (R + 1,) int64
    branch: np.ndarray | None = None  # (T,) int64 as in ``branches``; None where every token is seen by all behind it

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens (R,) of each example."""
        return np.diff(self.offsets)

    @property
    def places(self) -> np.ndarray:
        """Position (T,) of each token in its example."""
        if self.branch is not None:
            return positions(self.offsets, self.branch)
        return np.arange(len(self.tokens)) - np.repeat(self.offsets[:-1], self.lengths)

    def predictors(self, where: np.ndarray) -> np.ndarray:
        """Numbers (n,) of the tokens that those at ``where`` (n,) are predicted from."""
        return where - 1 if self.branch is None else predictors(self.offsets, self.branch)[where]

    def seen_by(self, wanted: np.ndarray) -> tuple["TokenRows", np.ndarray]:
        """The tokens that any of those at ``wanted`` (n,) sees, and the numbers (n,) of those among them."""
        if self.branch is None:
            return self, wanted
        keep = needed(self.offsets, self.branch, wanted)
        number = np.append(0, np.cumsum(keep))
        rows = TokenRows(self.tokens[keep], self.loss[keep], number[self.offsets], self.branch[keep])
        return rows, number[wanted]

    def take(self, rows: np.ndarray) -> "TokenRows":
        """The given examples, in the given order."""
        counts = self.lengths[rows]
        where = ragged_places(self.offsets[:-1][rows], counts)
        branch = None if self.branch is None else self.branch[where]
        return TokenRows(self.tokens[where], self.loss[where], np.append(0, np.cumsum(counts)), branch)


def make_template(tokenizer: PreTrainedTokenizerBase, name: str) -> Template:
    """The markup of template ``name``. Raises ``ValueError`` for an unknown one, for a tokenizer without a chat
    template, and for a chat template that does not repeat what was said."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown template {name!r}; known: {', '.join(TEMPLATES)}")
    end = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    if name == "plain":
        if not end:
            raise ValueError("the tokenizer has no eos token, which ends a text in the plain template; set one")
        return Template(name, (), _ids(tokenizer, "\n"), end)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "template 'chat' needs a tokenizer with a chat template, which this one lacks; use an instruct checkpoint "
            "(policy.path) or sft.template = 'plain'"
        )
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False, strftime_now=DAY.strftime))
    if whole.count(_QUESTION) != 1 or whole.count(_ANSWER) != 1 or whole.index(_QUESTION) > whole.index(_ANSWER):
        raise ValueError(
            "the tokenizer's chat template does not give question and answer once each and in this order, so nothing "
            "can be put in their places; use sft.template = 'plain'"
        )
    before, rest = whole.split(_QUESTION)
    between, after = rest.split(_ANSWER)
    # Up to the first special token, which is what generation stops at: a new line behind it teaches nothing.
    closing = _ids(tokenizer, after)
    specials = set(tokenizer.all_special_ids)
    stop = next((place for place, token in enumerate(closing, 1) if token in specials), len(closing))
    return Template(name, _ids(tokenizer, before), _ids(tokenizer, between), closing[:stop] or end)


def prompt_markup(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before the token that opens a history, and what stands behind the history's last item."""
    if name == "plain":
        return (), ()
    template = make_template(tokenizer, name)
    head, tail = encode_texts(tokenizer, [HISTORY_HEAD, HISTORY_TAIL])
    return (*template.before, *head), (*tail, *template.between)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    call: Any = tokenizer
    return tuple(call(text, add_special_tokens=False)["input_ids"]) if text else ()


@dataclass
class Renderer:
    """Turns examples into tokens; remembers the tokens of the texts it has seen."""

    tokenizer: PreTrainedTokenizerBase
    tokens: TokenMap
    template: Template
    most: int = 0  # tokens of a text at most; 0: all
    _known: dict[tuple[str, bool], tuple[list[int], bool]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, policy: Any, most: int = 0) -> "Renderer":
        """For a policy's tokenizer, SIDs and template."""
        return cls(policy.tokenizer, policy.tokens, make_template(policy.tokenizer, policy.template), most)

    def render(self, examples: Examples) -> TokenRows:
        """The examples as tokens. An answer that ends with a whole text gets the template's end, supervised."""
        flat, starts, piece, cut = self._pieces(examples)
        item = (examples.kind == ITEM) | (examples.kind == STEP)
        loss = np.where(examples.loss, np.where(item, SID_LOSS, TEXT_LOSS), SILENT)
        step = (examples.kind == STEP) & examples.loss
        places, rows, markup, spoken = self._markup(examples, cut)
        row = np.insert(examples.row, places, rows)
        piece = np.insert(piece, places, len(starts) - 4 + markup)
        loss = np.insert(loss, places, spoken)
        counts = starts[piece + 1] - starts[piece]
        tokens = flat[ragged_places(starts[piece], counts)]
        out = np.repeat(loss, counts).astype(np.int8)
        lengths = np.bincount(row, weights=counts, minlength=len(examples)).astype(np.int64)
        offsets = np.append(0, np.cumsum(lengths))
        out[offsets[:-1][lengths > 0]] = SILENT  # nothing stands before it that could predict it
        if not self.tokens.merged:
            return TokenRows(tokens, out, offsets)
        branch, trunk = stepped_branches(np.insert(step, places, False), counts)
        out[trunk] = SILENT  # a merged item is read alone
        return TokenRows(tokens, out, offsets, branch)

    def questions(self, examples: Examples) -> list[np.ndarray]:
        """Token ids of each example's question, up to where the answer begins."""
        asked = examples.questions()
        rows = self.render(replace(asked, loss=np.zeros_like(asked.loss)))
        return np.split(rows.tokens, rows.offsets[1:-1])

    def _pieces(self, examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The tokens of all pieces end to end, where each piece starts (one more than there are), the piece of each
        segment, and which segments are texts that were cut, (S,) bool. Pieces: the items, the texts, the mark, and the
        template's three; behind the items, where they are merged, the merged ones, and both in one."""
        items = self.tokens.item_tokens
        count, levels = items.shape
        parts, sizes, piece = [items.reshape(-1)], [np.full(count, levels)], examples.ref.copy()
        if self.tokens.merged:
            whole = FIRST_ITEM + np.arange(count)
            parts += [whole, np.column_stack([items, whole]).reshape(-1)]
            sizes += [np.ones(count, dtype=np.int64), np.full(count, levels + 1)]
            piece[((examples.kind == ITEM) | (examples.kind == STEP)) & ~examples.loss] += count
            piece[(examples.kind == STEP) & examples.loss] += 2 * count
        used, which = np.unique(examples.ref[examples.kind == TEXT], return_inverse=True)
        known = self._encoded([examples.texts[number] for number in used], examples.whole)
        texts, cut = [ids for ids, _ in known], np.zeros(len(piece), dtype=bool)
        cut[examples.kind == TEXT] = np.array([was for _, was in known], dtype=bool)[which]
        template = self.template
        rest = [*texts, [self.tokens.history], template.before, template.between, template.end]
        before = sum(map(len, sizes))
        sizes.append(np.array([len(part) for part in rest]))
        flat = np.concatenate([*parts, *(np.asarray(part, dtype=np.int64) for part in rest)])
        piece[examples.kind == MARK] = before + len(texts)
        piece[examples.kind == TEXT] = before + which
        return flat, np.append(0, np.cumsum(np.concatenate(sizes))), piece, cut

    def _encoded(self, texts: Sequence[str], whole: frozenset[str]) -> list[tuple[list[int], bool]]:
        """Token ids of each text, and whether some were cut off; none are of those that are to stay ``whole``."""
        keys = [(text, text in whole) for text in texts]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        for key, ids in zip(new, encode_texts(self.tokenizer, [text for text, _ in new])):
            cut = 0 < self.most < len(ids) and not key[1]
            self._known[key] = (ids[: self.most] if cut else ids, cut)
        return [self._known[key] for key in keys]

    @staticmethod
    def _markup(examples: Examples, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where the template's pieces are inserted: before which segment, in which example, which of the three, and
        what it is to the loss. A text that was ``cut`` (S,) does not end where it breaks off."""
        begin, end = examples.offsets[:-1], examples.offsets[1:]
        asked = np.zeros(len(examples), dtype=bool)
        asked[examples.row[~examples.answer]] = True
        answered = np.bincount(examples.row[examples.answer], minlength=len(examples))
        last = np.maximum(end - 1, 0)
        ended = (examples.kind == TEXT) & examples.loss & ~cut
        spoken = (answered > 0) & ended[last] if len(examples.kind) else asked
        # Of pieces at one place that of the earlier example comes first.
        parts = [(end[spoken], spoken, 2), ((end - answered)[asked], asked, 1), (begin[asked], asked, 0)]
        rows = [np.flatnonzero(mask) for _, mask, _ in parts]
        which = np.concatenate([np.full(len(r), number) for r, (_, _, number) in zip(rows, parts)])
        loss = np.where(which == 2, TEXT_LOSS, SILENT)
        return np.concatenate([place for place, _, _ in parts]), np.concatenate(rows), which, loss
