"""Texts that hold the names of tokens, and texts in pieces."""

import pytest
from text_toy import text_policy
from transformers import AddedToken

from sidgym.agents.literal import encode_texts, text_pieces


def test_names_of_added_tokens_in_a_text_are_text_whether_they_are_special_or_not():
    tokenizer = text_policy().tokenizer
    text = "a <think> tent <|im_end|>, blue"
    before = encode_texts(tokenizer, [text, "blue tent"])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    added = tokenizer.convert_tokens_to_ids("<think>")
    assert added in tokenizer(text)["input_ids"], "markup still has it"
    assert encode_texts(tokenizer, [text, "blue tent"]) == before
    tokenizer.add_tokens([AddedToken("blue", special=False)])
    assert encode_texts(tokenizer, [text, "blue tent"]) == before, "and so with one that comes later"
    assert tokenizer.decode(before[0]) == text


@pytest.mark.parametrize("text", [
    "A red tent and a blue lamp,  both for rainy days.\n\tAnd a kettle.",
    "日本語のテキスト はここで切れる",
    "word",
])  # fmt: skip
def test_pieces_are_the_whole_text_and_of_the_size_that_was_asked_for(text):
    tokenizer = text_policy().tokenizer
    (whole,) = encode_texts(tokenizer, [text])
    for most in (1, 4, 7, 0, 1000):
        pieces = text_pieces(tokenizer, text, most)
        assert "".join(pieces) == text
        assert all(pieces)
        if not 0 < most < len(whole):
            assert pieces == [text]
    sizes = [len(ids) for ids in encode_texts(tokenizer, text_pieces(tokenizer, text, 7))]
    assert max(sizes) <= 9, "a character of several tokens is not cut in two"
    assert len(sizes) <= -(-len(whole) // 7)
