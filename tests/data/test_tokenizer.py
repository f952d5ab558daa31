from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minnow.data import Tokenizer, train_tokenizer
from minnow.data.chat import SPECIAL_TOKENS
from minnow.errors import UserError

free = settings(deadline=None, derandomize=True, max_examples=100)
pieces = st.sampled_from(
    [*SPECIAL_TOKENS, "<|", "|>", "im_end", " ", "\n", "1", "23", "a", "é", "日", "\U0001f41f", "\r\n"]
)
texts_and_tokens = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=4))).map("".join))


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_special_tokens_have_lfm2_ids_and_bytes_follow(tokenizer: Tokenizer) -> None:
    assert [tokenizer.encode_chat(token) for token in SPECIAL_TOKENS] == [[i] for i in range(14)]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 7)
    assert tokenizer.vocab_size == 900
    singles = [tokenizer.encode(chr(code)) for code in range(128)]
    assert all(len(ids) == 1 and 14 <= ids[0] < 14 + 256 for ids in singles)
    assert len({ids[0] for ids in singles}) == 128


@free
@given(text=texts_and_tokens)
def test_decode_returns_what_was_encoded(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids
    assert tokenizer.decode(tokenizer.encode_chat(text), keep_special=True) == text


@free
@given(text=texts_and_tokens)
def test_plain_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    assert all(each >= len(SPECIAL_TOKENS) for each in tokenizer.encode(text))


@free
@given(
    digits=st.text(alphabet="0123456789", min_size=1, max_size=40), around=st.sampled_from(["", "x", " ", "-", "\n"])
)
def test_digits_never_merge(tokenizer: Tokenizer, digits: str, around: str) -> None:
    alone = [tokenizer.encode(digit)[0] for digit in digits]
    assert tokenizer.encode(digits) == alone
    found = [each for each in tokenizer.encode(around + digits + around) if each in alone]
    assert found == alone


def test_no_learned_token_holds_a_digit_and_anything_else(tokenizer: Tokenizer) -> None:
    learned = [tokenizer.decode([each]) for each in range(14 + 256, tokenizer.vocab_size)]
    assert not [token for token in learned if any(letter in "0123456789" for letter in token)]


@free
@given(text=texts_and_tokens.filter(lambda text: "<|" not in text))
def test_transformers_gives_equal_ids(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert reference(text).input_ids == tokenizer.encode(text)
    assert reference.decode(tokenizer.encode(text)) == text


def test_transformers_opens_it_beside_an_lfm2_config(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lfm2"}))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = "It's 1234  cafés\n\n\tdone <|im_end|>"
    assert opened(text).input_ids == tokenizer.encode_chat(text)
    assert (opened.pad_token_id, opened.bos_token_id, opened.eos_token_id) == (0, 1, 7)
    assert len(opened) == tokenizer.vocab_size


def test_saved_pre_tokenizer_is_the_one_runtimes_know(folder: Path) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text())
    split, byte_level = saved["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"]["Regex"] == (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    assert split["behavior"] == "Isolated" and not split["invert"]
    assert not byte_level["add_prefix_space"] and not byte_level["use_regex"]
    assert saved["model"]["ignore_merges"] is True and saved["normalizer"] is None


def test_loading_what_was_saved_gives_the_same_tokenizer(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.digest == tokenizer.digest
    assert loaded.encode("abc <|im_end|> 12") == tokenizer.encode("abc <|im_end|> 12")
    loaded.save(tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_training_is_deterministic_and_ignores_order(tokenizer: Tokenizer, texts: list[str]) -> None:
    again = train_tokenizer(reversed(texts), 900)
    assert again.digest == tokenizer.digest
    assert train_tokenizer(texts, 899).digest != tokenizer.digest


def test_merges_are_the_most_frequent_pairs() -> None:
    learned = train_tokenizer(["zq zq zq zq qz qz"], 14 + 256 + 1)
    assert learned.vocab_size == 271
    assert learned.decode([270]) == "zq"


def test_decode_takes_arrays_and_tensors_and_drops_special_tokens(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("abc 1"), 7]
    for form in (ids, np.array(ids, np.int32), torch.tensor(ids)):
        assert tokenizer.decode(form) == "abc 1"
        assert tokenizer.decode(form, keep_special=True) == "<|startoftext|>abc 1<|im_end|>"


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocabulary of 269 .* 270"):
        train_tokenizer(["a"], 269)
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="no text"):
            train_tokenizer(nothing, 300)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_the_chat_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "tokenizer.json").read_text().replace("<|tool_call_end|>", "<|something|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"no <\|tool_call_end\|> token"):
        Tokenizer(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))
