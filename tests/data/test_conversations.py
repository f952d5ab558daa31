"""Conversations are read in the formats of the hub, and every assistant turn of them is trained, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreign_folder import ZEPHYR, write_tokenizer
from minnow.data.conversations import Conversation, read_conversations
from minnow.data.table import Faults
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(["What is 2 + 2? It is 4, and the weather in Velm is fine.\n"] * 9, 300)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in rows))
    return path


def test_rows_of_all_forms_say_the_same(tmp_path: Path) -> None:
    tool = {"name": "add", "description": "", "parameters": {}}
    file = write(
        tmp_path / "rows.jsonl",
        {"messages": [USER, ASSISTANT], "tools": [tool], "source": "x"},
        {"prompt": "2 + 2?", "completion": "4", "tools": json.dumps([tool])},
        {"prompt": [USER], "completion": [ASSISTANT], "tools": [tool], "difficulty": 0.25},
    )
    found = list(read_conversations(file))
    assert all(list(each.messages) == [USER, ASSISTANT] and each.tools == [tool] for each in found)
    called = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [called]}
    (found_call,) = read_conversations(write(tmp_path / "calls.jsonl", {"messages": [USER, answer]}))
    said = found_call.messages[1]
    assert said["content"] == "" and said["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert [each.difficulty for each in found] == [None, None, 0.25] and found[1].place == f"line 2 of {file}"


def test_every_assistant_turn_is_trained_and_nothing_else(words: Tokenizer) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Velm", "days": 2}}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "fine"},
        {"role": "assistant", "content": "It is fine."},
        USER,
        ASSISTANT,
    ]
    ids, mask = Conversation("here", messages).tokenised(words)
    trained = words.decode(ids[mask], keep_special=True)
    written = '<|tool_call_start|>[weather(town="Velm", days=2)]<|tool_call_end|>'
    assert trained == f"{written}<|im_end|>It is fine.<|im_end|>4<|im_end|>"


def test_a_tokenizer_of_another_family_writes_calls_in_its_own_way(tmp_path: Path) -> None:
    template = ZEPHYR.replace(
        "m.content + eos_token", "(m.tool_calls | tojson if m.tool_calls else m.content) + eos_token"
    )
    words = Tokenizer.load(write_tokenizer(tmp_path / "words", template, bos_token="<s>"))
    call = {"function": {"name": "weather", "arguments": {"town": "Velm"}}}
    row = Conversation("here", [USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
    ids, mask = row.tokenised(words)
    assert '"name": "weather"' in words.decode(ids[mask])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=12)),
        min_size=1,
        max_size=6,
    )
)
def test_a_mask_is_never_all_zero(words: Tokenizer, turns: list[tuple[str, str]]) -> None:
    row = Conversation("here", [{"role": role, "content": text} for role, text in turns])
    if all(role != "assistant" for role, _ in turns):
        with pytest.raises(UserError, match="^here: .*nothing in it can be trained"):
            row.tokenised(words)
        return
    ids, mask = row.tokenised(words)
    assert len(ids) == len(mask) and mask.any() and not np.all(mask)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{", "line 2 of .* is not JSON"),
        ({"text": "x"}, "line 2 of .* has neither 'messages' nor 'prompt' and 'completion', only text"),
        ({"messages": []}, "line 2 of .* holds no list of messages"),
        ({"messages": [USER]}, "line 2 of .* has no assistant message"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 1 of line 2 of .* has no text in 'content'"),
        ({"messages": [USER, "4"]}, "message 1 of line 2 of .* has no 'role'"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "has 'tool_calls' that cannot be read"),
        ({"messages": [USER, ASSISTANT], "tools": "[{"}, "has 'tools' that are no JSON"),
        ({"messages": [USER, ASSISTANT], "tools": {"a": 1}}, "has 'tools' that are no list"),
        ({"messages": [USER, ASSISTANT], "difficulty": "hard"}, "has a 'difficulty' that is no number"),
    ],
)
def test_malformed_rows_stop_with_their_line_or_are_left_out(tmp_path: Path, row: Any, sentence: str) -> None:
    good = {"messages": [USER, ASSISTANT]}
    file = write(tmp_path / "rows.jsonl", good, row, good)
    with pytest.raises(UserError, match=sentence):
        list(read_conversations(file))
    faults = Faults(skip=True)
    assert len(list(read_conversations(file, faults))) == 2 and len(faults.found) == 1
