"""Tokenizers of other families: any Hugging Face ``tokenizer.json``, with the chat template that lies beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError

from minnow.data.tokenizer import FILES, Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_file

_GENERATION = "generation_config.json"
_CONTENT = "minnowcontent"  # stands in for a message's text, and survives whatever a template does to text
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private use: stands in for a special token that someone spelled


class ForeignTokenizer(Tokenizer):
    """A fast tokenizer that was not made here, with its own special tokens and chat format.

    Attributes:
        pad_id: where the tokenizer has none, the end token's.
        bos_id: None where it has none.
        eos_id: the token its template ends an assistant's turn with; without one, its end token.
        stop_ids: that one, its end token and those of ``generation_config.json``.

    Raises:
        UserError: nothing says which token ends an answer, or transformers cannot open the folder.
    """

    def __init__(self, folder: Path, backend: tokenizers.Tokenizer) -> None:
        self._wrap(backend)
        from transformers import AutoTokenizer

        try:
            # For the names of its special tokens and for its template; every id here is from tokenizer.json itself.
            self._form: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a tokenizer's own class raises
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"transformers cannot open the tokenizer of {folder} ({reason}); restore it") from error
        self._files = {
            file.name: file.read_bytes() for pattern in FILES for file in folder.glob(pattern) if file.is_file()
        }
        settings = folder / _GENERATION
        self.generation: dict[str, Any] = read_json(settings) if settings.exists() else {}
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        named: Any = self.generation.get("eos_token_id")
        ends = [self._form.eos_token_id, *(named if isinstance(named, list) else [named])]
        self.stop_ids = frozenset(each for each in (self._turn_end, *ends) if each is not None)
        if not self.stop_ids:
            raise UserError(
                f"nothing in {folder} says which token ends an answer; name eos_token in its tokenizer_config.json"
            )
        self.eos_id = next(each for each in (self._turn_end, *ends) if each is not None)
        self.bos_id = self._form.bos_token_id
        self.pad_id = self.eos_id if self._form.pad_token_id is None else self._form.pad_token_id

    @property
    def begin(self) -> list[int]:
        """What the tokenizer itself puts before a text: its start token or nothing."""
        return super().begin if self.adds_bos else []

    def save(self, folder: Path) -> None:
        """Write the files it was read from, as they were."""
        for name, content in self._files.items():
            with whole_file(Path(folder) / name) as temporary:
                temporary.write_bytes(content)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids up to where the model's answer begins, equal to transformers' ``apply_chat_template``.

        Special tokens spelled by anyone but the assistant stay plain text. Without a chat template it is the messages'
        bare text.

        Raises:
            UserError: the template refuses the messages, or there are tools and no template.
        """
        if not messages or not all(isinstance(each.get("content"), str) for each in messages):
            raise UserError("a conversation needs at least one message, and each its 'content' as a string")
        if self._form.chat_template is None:
            if tools:
                raise UserError("this tokenizer has no chat template and so no form for tools; leave the tools out")
            return [*self.begin, *self.encode("\n\n".join(each["content"] for each in messages))]
        spelled: list[str] = []

        def hide(found: re.Match[str]) -> str:
            spelled.append(found[0])
            return f"\ue000{len(spelled) - 1}\ue001"

        shown = [
            {
                **each,
                "content": each["content"] if each["role"] == "assistant" else self._special.sub(hide, each["content"]),
            }
            for each in messages
        ]
        text = self._render(shown, tools, prompt=True)
        if not spelled:
            return self.encode_chat(text)
        ids: list[int] = []
        for place, piece in enumerate(_MARK.split(text)):
            ids += self.encode(spelled[int(piece)]) if place % 2 else self.encode_chat(piece)
        return ids

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], list[bool]]:
        """Ids up to the end of the last assistant message and their completion mask.

        Every assistant text and the token that ends it is trained as it follows :meth:`prompt`. Where the template
        rewrites earlier turns (some drop their thoughts), those are context only.

        Raises:
            UserError: as for :meth:`prompt`, and when there is no assistant message to train on.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for place, message in enumerate(messages):
            if message["role"] != "assistant" or place == 0:
                continue
            before = self.prompt(messages[:place], tools)
            mask = mask if before[: len(ids)] == ids else []
            mask += [False] * (len(before) - len(mask))
            answer = [*self.encode_chat(self._said(messages[: place + 1], tools)), self.eos_id]
            ids = before + answer
            mask += [True] * len(answer)
        if not ids:
            raise UserError(
                f"this conversation of {len(messages)} messages has no assistant message after another, so nothing in it "
                "can be trained; add the answer as a message with the role 'assistant'"
            )
        return ids, mask

    def _said(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        """The last message's text; where it has ``tool_calls``, what the template makes of it."""
        if not messages[-1].get("tool_calls"):
            return str(messages[-1]["content"])
        begun, whole = self._render(messages[:-1], tools, prompt=True), self._render(messages, tools, prompt=False)
        said, _, _ = whole.removeprefix(begun).rpartition(str(self._trusted.id_to_token(self.eos_id)))
        if not whole.startswith(begun) or not said:
            raise UserError("the chat template of this tokenizer shows no tool calls; write them as text in 'content'")
        return said

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Whatever the tokenizer would recognise as one of its special tokens."""
        added = [token.content for token in self._trusted.get_added_tokens_decoder().values() if token.special]
        return re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def _turn_end(self) -> int | None:
        if self._form.chat_template is None:
            return None
        turn = [{"role": "user", "content": _CONTENT}, {"role": "assistant", "content": _CONTENT}]
        behind = self._render(turn, None, prompt=False).rpartition(_CONTENT)[2]
        found = self._special.search(behind)
        return None if found is None else self._trusted.token_to_id(found[0])

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, prompt: bool
    ) -> str:
        try:
            chat, offered = [dict(each) for each in messages], None if tools is None else [dict(each) for each in tools]
            text = self._form.apply_chat_template(chat, tools=offered, add_generation_prompt=prompt, tokenize=False)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            roles = ", ".join(str(each["role"]) for each in messages)
            raise UserError(
                f"the chat template of this tokenizer refuses a conversation of {roles} ({error}); change the messages"
            ) from error
        return str(text)
