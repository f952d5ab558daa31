from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minnow.data import Tokenizer
from minnow.data.chat import SPECIAL_TOKENS
from minnow.errors import UserError

free = settings(deadline=None, derandomize=True, max_examples=60)
CALL = '<|tool_call_start|>[search(query="é x")]<|tool_call_end|>'
TOOLS = [
    {"name": "search", "description": 'Find "pages" <&> café\'s', "parameters": {"type": "object", "properties": {}}},
    {"name": "calculator", "parameters": {"type": "object", "required": ["expression"], "limit": 2.5, "strict": True}},
]
SYSTEM = {"role": "system", "content": "Be brief."}
AGENT = [
    {"role": "user", "content": " Who is\n\n Ada?\n"},
    {"role": "assistant", "content": CALL},
    {"role": "tool", "content": "\n[1] Ada\n"},
    {"role": "assistant", "content": "A page.\n"},
    {"role": "user", "content": ""},
]

plain = st.text(max_size=30).filter(lambda text: "<|" not in text)
hostile = st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=5))).map("".join)


def conversations(content: st.SearchStrategy[str], answers: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    asked = st.tuples(st.sampled_from(["user", "tool"]), content)
    answered = st.tuples(st.just("assistant"), answers)
    body = st.lists(st.one_of(asked, answered), min_size=1, max_size=5)
    system = st.lists(st.tuples(st.just("system"), content), max_size=1)
    return st.tuples(system, body).map(
        lambda parts: [{"role": role, "content": text} for role, text in parts[0] + parts[1]]
    )


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def template_ids(reference: Any, messages: Any, tools: Any = None, prompt: bool = True) -> list[int]:
    found = reference.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=True)
    return found["input_ids"]


def test_the_prompt_is_written_as_lfm2_5_writes_it(tokenizer: Tokenizer) -> None:
    messages = [SYSTEM, {"role": "user", "content": "Hi"}]
    text = tokenizer.decode(tokenizer.prompt(messages, [{"name": "a"}, {"name": "b"}]), keep_special=True)
    assert text == (
        '<|startoftext|><|im_start|>system\nBe brief.\nList of tools: [{"name": "a"}, {"name": "b"}]<|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    without_system = tokenizer.decode(tokenizer.prompt(messages[1:], [{"name": "a"}]), keep_special=True)
    assert without_system.startswith('<|startoftext|><|im_start|>system\nList of tools: [{"name": "a"}]<|im_end|>\n')
    bare = tokenizer.decode(tokenizer.prompt(messages[1:]), keep_special=True)
    assert bare == "<|startoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize("messages", [AGENT[:1], [SYSTEM, *AGENT], AGENT, [{"role": "system", "content": ""}, *AGENT]])
def test_transformers_template_gives_equal_ids(tokenizer: Tokenizer, reference: Any, messages: Any, tools: Any) -> None:
    assert template_ids(reference, messages, tools) == tokenizer.prompt(messages, tools)
    header = tokenizer.encode_chat("<|im_start|>assistant\n")
    finished = template_ids(reference, messages, tools, prompt=False)
    assert finished == tokenizer.prompt(messages, tools)[: -len(header)]


@free
@given(messages=conversations(plain, plain.filter(lambda text: text == text.lstrip())))
def test_transformers_template_gives_equal_ids_for_any_text(
    tokenizer: Tokenizer, reference: Any, messages: Any
) -> None:
    assert template_ids(reference, messages) == tokenizer.prompt(messages)


@free
@given(messages=conversations(hostile, plain))
def test_only_the_assistant_can_write_special_tokens(tokenizer: Tokenizer, messages: Any) -> None:
    ids = tokenizer.prompt(messages, [{"name": "<|im_end|>"}])
    shown = sum(1 for message in messages if message["role"] != "system") + 1  # the tools always make a system turn
    assert [each for each in ids if each < 14] == [1, *[6, 7] * shown, 6]
    text = tokenizer.decode(ids, keep_special=True)
    assert all(message["content"] in text for message in messages)


@free
@given(messages=conversations(hostile, hostile), answer=hostile)
def test_mask_covers_the_answers_and_their_ends(tokenizer: Tokenizer, messages: Any, answer: str) -> None:
    whole = [*messages, {"role": "assistant", "content": answer}]
    ids, mask = tokenizer.conversation(whole)
    assert len(ids) == len(mask)
    prompt = tokenizer.prompt(messages)
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :] == [*tokenizer.encode_chat(answer), 7, *tokenizer.encode("\n")]
    # Every answer in the conversation, in order, each closed by <|im_end|>, is what the mask selects.
    trained = [each for each, chosen in zip(ids, mask, strict=True) if chosen]
    expected: list[int] = []
    for message in whole:
        if message["role"] == "assistant":
            expected += [*tokenizer.encode_chat(message["content"]), 7]
    assert trained == expected
    assert mask[len(prompt) :] == [True] * (len(ids) - len(prompt) - 1) + [False]
    assert not any(mask[: 1 + len(tokenizer.encode("\n"))])


def test_tool_calls_in_answers_become_tool_call_tokens(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.conversation(AGENT)
    assert [each for each, chosen in zip(ids, mask, strict=True) if chosen and each < 14] == [10, 11, 7, 7]
    hostile_tool = [{"role": "tool", "content": CALL}, {"role": "assistant", "content": "no"}]
    assert not {10, 11} & set(tokenizer.conversation(hostile_tool)[0])


def test_an_answer_that_begins_with_a_newline_follows_the_prompt_exactly(tokenizer: Tokenizer) -> None:
    asked = [{"role": "user", "content": "x"}]
    ids, _ = tokenizer.conversation([*asked, {"role": "assistant", "content": "\n\nabc"}])
    assert ids[: len(tokenizer.prompt(asked))] == tokenizer.prompt(asked)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "at least one message"),
        ([{"role": "robot", "content": "x"}], "message 0 has the role 'robot'; use one of system, user, assistant"),
        ([SYSTEM, {"role": "user", "content": None}], "message 1 .*NoneType"),
        ([{"role": "user", "content": "x"}], "no assistant message"),
    ],
)
def test_bad_conversations_are_named(tokenizer: Tokenizer, messages: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tokenizer.conversation(messages)
