"""Tokenizers of several forms, as llama.cpp reads them from a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from foreign_folder import GEMMA, THINKING, write_tokenizer
from minnow.data.chat import BOS
from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf, plan_export
from minnow.device.gguf_vocabulary import BYTE, CONTROL, PRE_TOKENIZERS, UNKNOWN, USER_DEFINED
from minnow.device.llama_cpp import LlamaCpp
from minnow.device.parity import PROBES, check_tokenizer
from minnow.errors import UserError
from minnow.files import read_json, write_json

_TEXT = [*PROBES, "Name a town.\nVelm and Osk are towns; Köln is one, and 東京 is too.\n"] * 9
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def _network(folder: Path, vocab_size: int, **ids: int) -> Path:
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **shape, **ids)).save_pretrained(folder)
    return folder


def _sentencepiece(folder: Path, prefix: bool = False) -> Path:
    """A tokenizer in Gemma's form: spaces as ▁, bytes for what is unknown, runs of line ends defined by users."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps]) if prefix else steps[0]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[*(AddedToken(each, special=True, normalized=False) for each in _SPECIAL), *pieces],
        show_progress=False,
    )
    backend.train_from_iterator([word for text in _TEXT for word in text.split("\n")], trainer)
    # The trainer wants bytes as special tokens to keep their ids; they are not.
    written = json.loads(backend.to_str())
    written["added_tokens"] = [each for each in written["added_tokens"] if each["content"] in _SPECIAL]
    backend = tokenizers.Tokenizer.from_str(json.dumps(written))
    if not prefix:  # as Gemma has them; Llama 2, whose texts begin with a space, has none
        backend.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁▁", normalized=True)])
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": GEMMA, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return _network(folder, backend.get_vocab_size(), bos_token_id=2, eos_token_id=1, pad_token_id=0)


def _byte_level(folder: Path, before: list[Any], **byte_level: Any) -> Path:
    write_tokenizer(folder, THINKING, bos_token="<s>")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, **byte_level)]
    )
    backend.save(str(folder / "tokenizer.json"))
    return _network(folder, 400, bos_token_id=1, eos_token_id=2, pad_token_id=2)


def _split(expression: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(expression), behavior="isolated")]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gpt-2", lambda folder: _byte_level(folder, [])),
        ("smollm", lambda folder: _byte_level(folder, [pre_tokenizers.Digits(individual_digits=True)])),
        *(
            (name, lambda folder, text=text: _byte_level(folder, _split(text), use_regex=False))
            for text, name in PRE_TOKENIZERS.items()
        ),
        ("default", _sentencepiece),
        ("default", lambda folder: _sentencepiece(folder, prefix=True)),
    ],
)
def test_llama_cpp_cuts_texts_alike(name: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    export = plan_export(folder, "F32")
    assert export.vocabulary.pre == name and export.vocabulary.adds_bos
    found = check_tokenizer(folder, export.write(tmp_path / "model.gguf").file)
    assert found.differing == ()


def test_types_of_tokens_and_ends(tmp_path: Path) -> None:
    vocabulary = plan_export(_sentencepiece(tmp_path / "model"), "F32").vocabulary
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert kinds["<end_of_turn>"] == kinds["<bos>"] == CONTROL and kinds["<unk>"] in (UNKNOWN, CONTROL)
    assert kinds["<0x0A>"] == BYTE and kinds["\n\n"] == kinds["   "] == USER_DEFINED
    assert [vocabulary.tokens[each] for each in vocabulary.ends] == ["<end_of_turn>", "<eos>"]
    assert vocabulary.chat_template == GEMMA


@pytest.mark.parametrize("begins", [False, True])
def test_a_tokenizer_of_lfm2s_form_is_known_without_opening_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    if begins:  # as Liquid's own does
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 1)])
        backend.save(str(folder / "tokenizer.json"))
    words = Tokenizer.load(folder)
    monkeypatch.setattr("minnow.device.gguf_vocabulary.Tokenizer", None)
    found = plan_export(folder).vocabulary
    assert (found.bos, found.pad, found.ends) == (words.bos_id, words.pad_id, (words.eos_id,))
    assert found.adds_bos == words.adds_bos == begins


def test_llama_cpp_stops_where_the_checkpoint_does(tmp_path: Path) -> None:
    folder = _byte_level(tmp_path / "model", [])  # a turn ends with <|im_end|>, a text with </s>
    with LlamaCpp(export_gguf(folder, tmp_path / "model.gguf").file) as llama:
        assert llama.ends([2, 6, 5, 100]) == [True, True, False, False]


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    folder = _byte_level(tmp_path / "model", _split(r"\p{L}+|\s"), use_regex=False)
    with pytest.raises(UserError, match=r"splits text by .*no name for.*llama-bpe"):
        plan_export(folder)
    tokenizer = read_json(folder / "tokenizer.json")
    write_json(folder / "tokenizer.json", tokenizer | {"pre_tokenizer": {"type": "Whitespace"}})
    with pytest.raises(UserError, match="neither a byte-level BPE nor in SentencePiece's form"):
        plan_export(folder)
