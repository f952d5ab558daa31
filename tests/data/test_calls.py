from __future__ import annotations

import json
import keyword

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.calls import MAX_CHARACTERS, Call, CallError, parse_any_calls, parse_calls, render_call, render_calls

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
arguments_names = names | st.sampled_from([*keyword.kwlist, "true", "null", "__debug__", "self"])
tool_names = st.lists(names.filter(lambda n: not keyword.iskeyword(n)), min_size=1, max_size=3).map(".".join)
nasty = st.sampled_from(
    ["<|tool_call_end|>", "<|tool_call_start|>[f(x=1)]", '")]', "\\", "\\u003c|", "'", '"""', "\n", "\r\n", "\x00", "\u2028",
     "</think>", "<think>", "from=", "true", "# no comment", "{x}", "\ud800", "🦋é", "\\N{DASH}", "import =", "'class=\""]
)  # fmt: skip
strings = st.text(max_size=12) | st.lists(st.text(max_size=3) | nasty, max_size=5).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3), max_leaves=5
)
calls = st.builds(Call, tool_names, st.dictionaries(arguments_names, values, max_size=2))
prose = st.text(max_size=20).filter(lambda text: "<" not in text)


@settings(deadline=None, derandomize=True, max_examples=120)
@given(st.lists(calls, min_size=1, max_size=2), prose, prose)
def test_rendered_calls_parse_back(wanted: list[Call], before: str, after: str) -> None:
    text = before + render_calls(wanted) + after
    assert parse_calls(text) == wanted
    assert text.count("<|tool_call_start|>") == text.count("<|tool_call_end|>") == 1  # strings bring no token in
    assert [type(v) for c in parse_calls(text) for v in c.arguments.values()] == [
        type(v) for c in wanted for v in c.arguments.values()
    ]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.lists(
        st.text(max_size=6) | nasty | st.sampled_from(["[", "]", "f(", ")", "a=", ",", "-", "1", "lambda:"]),
        max_size=12,
    ).map("".join)
)
def test_any_text_gives_calls_or_a_call_error(body: str) -> None:
    for text in (
        body,
        f"<|tool_call_start|>{body}",
        f"{body}<|tool_call_end|>",
        f"<|tool_call_start|>[f(x={body})]<|tool_call_end|>",
    ):
        try:
            found = parse_calls(text)
        except CallError as error:
            assert str(error).endswith(".")
            continue
        for call in found:
            json.dumps(call.arguments, allow_nan=False)


def test_the_form_is_lfm2s() -> None:
    assert render_call("search", {"query": "Größe"}) == '<|tool_call_start|>[search(query="Größe")]<|tool_call_end|>'
    assert render_calls([Call("a.b", {"x": -1, "y": None}), Call("c")]) == (
        "<|tool_call_start|>[a.b(x=-1, y=None), c()]<|tool_call_end|>"
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I look [1] it up. [search(query='x')]<|tool_call_end|>", [Call("search", {"query": "x"})]),
        ("<|tool_call_start|>[search(query='x')]", [Call("search", {"query": "x"})]),
        ("<|tool_call_start|>search(query='x')<|tool_call_end|>", [Call("search", {"query": "x"})]),
        ("<|tool_call_start|>[a()]<|tool_call_end|> and <|tool_call_start|>[b()]<|tool_call_end|>", [Call("a"), Call("b")]),
        ("<|tool_call_start|>[f(on=true, off=false, gap=null, n=[1, -2.5], d={'k': {'m': ('x',)}})]<|tool_call_end|>",
         [Call("f", {"on": True, "off": False, "gap": None, "n": [1, -2.5], "d": {"k": {"m": ["x"]}}})]),
        ('<|tool_call_start|>[mail.send(from="a", class="b", text="from = class=")]<|tool_call_end|>',
         [Call("mail.send", {"from": "a", "class": "b", "text": "from = class="})]),
        ('<|tool_call_start|>[note(text="two\nlines \\d")]<|tool_call_end|>', [Call("note", {"text": "two\nlines \\d"})]),
        ("<think>[no(x=1)]<|tool_call_end|></think><|tool_call_start|>[yes()]<|tool_call_end|>", [Call("yes")]),
        ("plain prose with [brackets(x=1)]", []),
        ("", []),
    ],
)  # fmt: skip
def test_what_models_write(text: str, wanted: list[Call]) -> None:
    assert parse_calls(text) == wanted


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('[search("x")]', "its name"),
        ("[search(query=x)]", "argument query of search must be a plain value"),
        ("[search(query=open('/etc/passwd').read())]", "plain value"),
        ("[search(query=f'{1}')]", "plain value"),
        ("[search(query=b'x')]", "plain value"),
        ("[search(query=-true)]", "plain value"),
        ("[search(query=1e999)]", "plain value"),
        ("[search(query={1: 2})]", "plain value"),
        ("[search(**{'query': 'x'})]", "** is not allowed"),
        ("[search(query='x', query='y')]", "given twice"),
        ("[search(query='x'", "cannot be read"),
        ("[f()()]", "name of a tool"),
        ("['search']", "only calls"),
        ("[]", "empty"),
        ("", "cannot be read"),
        ("[" * 3000, "cannot be read"),
        ("[f(x='" + "y" * 20_000 + "')]", "characters long"),
    ],
)
def test_unreadable_calls_say_why(body: str, reason: str) -> None:
    with pytest.raises(CallError, match=reason.replace("*", r"\*")):
        parse_calls(f"Hm. <|tool_call_start|>{body}<|tool_call_end|>")


def test_an_end_token_without_a_call_is_an_error() -> None:
    with pytest.raises(CallError, match="no call"):
        parse_calls("nothing here<|tool_call_end|>")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("no space", {}),
        ("import", {}),
        ("f", {"a b": 1}),
        ("f", {"x": float("nan")}),
        ("f", {"x": object()}),
        ("f", {"x": {1: 2}}),
    ],
)
def test_what_has_no_form_is_refused(name: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match="cannot"):
        render_call(name, arguments)


def test_canonical_ignores_the_order_of_arguments() -> None:
    assert Call("f", {"a": 1, "b": [2]}).canonical == Call("f", {"b": [2], "a": 1}).canonical
    assert Call("f", {"a": 1}).canonical != Call("f", {"a": "1"}).canonical


@pytest.mark.parametrize(
    "text, names",
    [
        ("No call.", []),
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', ["f", "g"]),
        ('<|python_tag|>{"name": "f", "arguments": {}}', ["f"]),
        ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', ["f", "g"]),
        ('<think>{"name": "f"}</think>Done.', []),
        (
            'Sure.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
            ["f", "g"],
        ),
        ('<tool_call>{"name": "f", "arguments": {}}', ["f"]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ["f"]),
        ("<|tool_call_start|>[f(a=1)]<|tool_call_end|>", ["f"]),
        ('<|tool_call_start|>[{"name": "f", "arguments": {"a": 1}}]<|tool_call_end|>', ["f"]),
        ("[f(a=1), g.h(b=[2])]", ["f", "g.h"]),
        ("[1, 2]", []),
        ('{"answer": 5}', []),
    ],
)
def test_other_forms_of_calls(text: str, names: list[str]) -> None:
    assert [call.name for call in parse_any_calls(text)] == names


@pytest.mark.parametrize(
    "text",
    [
        '{"name": 5, "parameters": {}}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "arguments": "{"}',
        '{"name": "f"',
        '{"name": ' + "{" * 9000,
        '{"name": "f", "arguments": {"a": "' + "x" * MAX_CHARACTERS + '"}}',
        "<tool_call></tool_call>",
        "<tool_call>f(a=1)</tool_call>",
        "[f(1)]",
    ],
)
def test_calls_in_other_forms_that_cannot_be_read(text: str) -> None:
    with pytest.raises(CallError):
        parse_any_calls(text)


def test_the_agent_reads_one_form_only() -> None:
    """Of a model with LFM2's tokens: a page can hold the marks of the others, and an assistant may quote it."""
    assert parse_calls('<tool_call>{"name": "f", "arguments": {}}</tool_call>') == []
    assert parse_calls('{"name": "f", "parameters": {}}') == []
