"""Byte-level BPE in the form every runtime reads: trained, loaded and saved as a Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from minnow.data.chat import BOS, CHAT_TEMPLATE, END, FILL_IN, PAD, SPECIAL_TOKENS, START, turns
from minnow.errors import UserError
from minnow.files import write_json, write_text

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's split expression; llama.cpp knows it as the pre-tokenizers ``llama-bpe`` and ``lfm2``."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*")
"""Files of a checkpoint folder that belong to its tokenizer."""

# transformers' own mark for "no limit": the context length belongs to the model's config, not to the tokenizer.
_NO_LENGTH_LIMIT = int(1e30)


class Tokenizer:
    """A byte-level BPE tokenizer with LFM2's special tokens and chat format.

    Attributes:
        vocab_size: entries, special tokens included; ids are ``0 .. vocab_size - 1``.
        pad_id, bos_id, eos_id: ``<|pad|>``, ``<|startoftext|>``, ``<|im_end|>``.
        stop_ids: what ends an answer.
        generation: entries for a checkpoint's ``generation_config.json``.
    """

    bos_id: int | None

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap ``backend``, which is copied.

        Raises:
            UserError: the vocabulary lacks one of the special tokens that the chat format is written with.
        """
        self._wrap(backend)
        ids = {token: self._special_id(token) for token in SPECIAL_TOKENS}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.pad_id: int = ids[PAD]
        self.bos_id = ids[BOS]
        self.eos_id: int = ids[END]
        self.stop_ids = frozenset([self.eos_id])
        self.generation: dict[str, Any] = {}
        self._start_id: int = ids[START]
        self._newline = self.encode("\n")
        self._assistant = self.encode("assistant\n")

    def _wrap(self, backend: tokenizers.Tokenizer) -> None:
        self._serialised = backend.to_str()
        # Two copies, because whether special tokens are recognised is a property of the object and not of the call.
        self._plain = tokenizers.Tokenizer.from_str(self._serialised)
        self._plain.encode_special_tokens = True
        self._trusted = tokenizers.Tokenizer.from_str(self._serialised)

    def __getstate__(self) -> dict[str, Any]:
        # The library's own pickling forgets whether special tokens are recognised.
        return {name: value for name, value in vars(self).items() if name not in ("_plain", "_trusted")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._wrap(tokenizers.Tokenizer.from_str(self._serialised))

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder: one with LFM2's special tokens, or of any other family
        (:class:`minnow.data.foreign_tokenizer.ForeignTokenizer`).

        Raises:
            UserError: ``tokenizer.json`` is missing or unreadable; of another family, also what its class says.
        """
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{folder} holds no tokenizer.json; name a checkpoint folder or train a tokenizer first")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust library raises bare Exception for every malformed file
            raise UserError(
                f"{file} is not a tokenizer ({error}); restore it or run the tokenizer stage again"
            ) from error
        if any(backend.token_to_id(token) is None for token in SPECIAL_TOKENS):
            from minnow.data.foreign_tokenizer import ForeignTokenizer

            return ForeignTokenizer(Path(folder), backend)
        return Tokenizer(backend)

    @property
    def adds_bos(self) -> bool:
        """Whether ``tokenizer.json`` itself says that the start token comes before a text."""
        return self._trusted.encode("", add_special_tokens=True).ids == [self.bos_id]

    @property
    def begin(self) -> list[int]:
        """The ids that come before bare text."""
        return [] if self.bos_id is None else [self.bos_id]

    @property
    def fill_in_ids(self) -> list[int]:
        """The tokens before the prefix, the middle and the suffix of a document to fill in.

        Raises:
            UserError: the vocabulary has none.
        """
        for names in FILL_IN:
            ids = [found for name in names if (found := self._trusted.token_to_id(name)) is not None]
            if len(ids) == len(names):
                return ids
        raise UserError(
            f"the tokenizer has no tokens to fill in the middle with ({', '.join(FILL_IN[0])}); leave that out"
        )

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``; transformers opens them.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(folder)
        write_text(folder / "tokenizer.json", self._serialised)
        write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
        added = {str(each.pop("id")): each for each in json.loads(self._serialised)["added_tokens"]}
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS,
                "eos_token": END,
                "pad_token": PAD,
                "add_bos_token": False,
                "add_eos_token": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": _NO_LENGTH_LIMIT,
                "model_input_names": ["input_ids", "attention_mask"],
                "added_tokens_decoder": added,
                "chat_template": CHAT_TEMPLATE,
            },
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the vocabulary, merges and added tokens: equal digests give equal ids."""
        parts = json.loads(self._serialised)
        identity = {name: parts[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text: what looks like a special token is spelled out, never recognised."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """:meth:`encode`, and for each id the characters ``[begin, end)`` of ``text`` that it spells."""
        found = self._plain.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` for many texts, on all cores."""
        return [each.ids for each in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_chat(self, text: str) -> list[int]:
        """Ids of trusted text (a rendered template, the model's own words) with special tokens recognised."""
        return self._trusted.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD, special tokens go unless ``keep_special``."""
        return self._trusted.decode([int(each) for each in ids], skip_special_tokens=not keep_special)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids that end with ``<|im_start|>assistant\\n``: the model's turn to answer.

        Equal to transformers' ``apply_chat_template(..., add_generation_prompt=True)`` with two exceptions: special
        tokens spelled by anyone but the assistant stay plain text here, and an earlier answer that begins with a
        line end is encoded apart from its header, as the model generated it.

        Raises:
            UserError: no messages, an unknown role, or content that is not a string.
        """
        ids, _ = self._chat(messages, tools)
        return [*ids, self._start_id, *self._assistant]

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation and its completion mask (both of one length).

        The mask is True on every assistant text and the ``<|im_end|>`` that closes it, and nowhere else. Whatever
        comes before an assistant text equals :meth:`prompt` of the messages before it.

        Raises:
            UserError: as for :meth:`prompt`, and when there is no assistant message to train on.
        """
        ids, mask = self._chat(messages, tools)
        if not any(mask):
            raise UserError(
                f"this conversation of {len(messages)} messages has no assistant message, so nothing in it can be "
                "trained; add the answer as a message with the role 'assistant'"
            )
        return ids, mask

    def _special_id(self, token: str) -> int:
        found = self._trusted.token_to_id(token)
        if found is None:
            raise UserError(
                f"the tokenizer has no {token} token, which the chat format needs; use a tokenizer of the LFM2 family "
                "or one trained here"
            )
        return found

    def _chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[int], list[bool]]:
        ids, mask = self.begin, [False]
        for turn in turns(messages, tools):
            ids.append(self._start_id)
            if turn.role == "assistant":
                # Apart from its header: a text that begins with a newline must not fuse with the header's, because
                # the prompt the model answers ends there.
                ids += self._assistant
                mask += [False] * (len(ids) - len(mask))
                ids += self.encode_chat(turn.content)
            else:
                ids += self.encode(f"{turn.role}\n{turn.content}")
            ids.append(self.eos_id)
            mask += [turn.role == "assistant"] * (len(ids) - len(mask))
            ids += self._newline
            mask += [False] * len(self._newline)
        return ids, mask


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with the special tokens first, then the 256 bytes, then merges.

    Digits never merge: the split used while training cuts every digit from its neighbours, so no merge of two digits
    is learned, while the saved split stays Llama 3's own and every runtime gives equal ids. The result does not
    depend on the order of ``texts``. A corpus with too few distinct words gives fewer than ``vocab_size`` entries.

    Raises:
        UserError: ``vocab_size`` is below 270, or there is no text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small: {len(SPECIAL_TOKENS)} special tokens and 256 bytes need "
            f"{SMALLEST_VOCABULARY}; ask for at least that many"
        )
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = _split(LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seen = False

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield text

    backend.train_from_iterator(counted(), trainer)
    if not seen:
        raise UserError("there is no text to train a tokenizer on; give a corpus that is not empty")
    backend.pre_tokenizer = _split(LLAMA3_SPLIT)
    return Tokenizer(backend)


def _split(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
