"""More than a hundred calls as models garble them: each is parsed or refused in a sentence, never an exception beside."""

from __future__ import annotations

import json

import pytest

from minnow.data.calls import CallError, parse_any_calls, parse_calls, without_calls

_BODIES = [
    "", " ", "[", "]", "[]", "[[]]", "[,]", "()", "{}", "[{}]", "[null]", "null", "true", "0", "-1", "''", '"', "'''", "[']",
    "search", "search(", "search)", "search()", "[search]", "[search(]", "[search()", "search()]", "[search())]",
    "[search(())]", "[search(query)]", "[search(query=)]", "[search(query=,)]", "[search(=1)]", "[search(query==1)]",
    "[search(query='x)]", '[search(query="x)]', "[search(query='x\")]", "[search(query=x y)]", "[search(query='x' 'y')]",
    "[search(query='x';)]", "[search(query='it's')]", '[search(query="say "hi"")]', "[search(query=“x”)]",
    "[search(query=‘x’)]", "[search(quéry='x')]", "[Search Web(query='x')]", "[search-web(query='x')]",
    "[1search(query='x')]", "[search.(query='x')]", "[.search(query='x')]", "[search..web(query='x')]",
    "[search[0](query='x')]", "[search(query='x').strip()]", "[search(query='x')()]", "[search(query=search(query='x'))]",
    "[search(query=lambda: 1)]", "[search(query=[x for x in y])]", "[search(query=(yield))]", "[search(query=await x)]",
    "[search(query:='x')]", "[search(query='x' if 1 else 'y')]", "[search(query='a'+'b')]", "[search(query=1+1)]",
    "[search(query=2**99999999)]", "[search(query=__import__('os'))]", "[search(query=...)]", "[search(query=1j)]",
    "[search(query=b'x')]", "[search(query=f'{1}')]", "[search(query={1})]", "[search(query={**{}})]",
    "[search(query={'a'})]", "[search(query={'a':})]", "[search(query={1: 2})]", "[search(query=nan)]",
    "[search(query=NaN)]", "[search(query=1e999)]", "[search(query=-'x')]", "[search(query=not true)]",
    "[search(query='x', query='y')]", "[search(*a)]", "[search(**a)]", "[search('x', query='y')]",
    "[search(query='x') search(query='y')]", "[search(query='x'), ]", "[search(query='x'),, search()]",
    "[search(query='x'); search(query='y')]", "search(query='x')\nsearch(query='y')", "[search(query='x')] and more",
    "import os; [search()]", "print(search(query='x'))]", "[search(query='\x00')]", "[search(query='\ud800')]",
    "[search(query='\\ud800')]", "[search(query='\\x')]", "[search(query='\\N{nope}')]", "[search(query='\\u12')]",
    "[search(query=0777)]", "[search(query=1_000)]", "[search(query=0x)]", "[search(query=١)]", "# [search()]",
    "[search(query='x' # why\n)]", "[search(\n\tquery='x'\n  )]", "\t[search()]", "[if(query='x')]", "[None(query='x')]",
    "[True()]", "[search(if=1, class=2, lambda=3)]", "[search(query=if)]", "<tool>search</tool>", "search: x", "[" * 5000,
    "(" * 5000, "{" * 5000, "[search(query=" + "(" * 3000, "[search(query=" + "-" * 3000 + "1)]", "[search(query='" + "x" * 20_000,
    "[search(query=" + "9" * 5000 + ")]", '{"name"', '{"name": }', '{"name": "search"}', '{"name": null, "arguments": {}}',
    '{"name": ["search"], "arguments": {}}', '{"name": "search", "arguments": null}', '{"name": "search", "arguments": []}',
    '{"name": "search", "arguments": "x"}', '{"name": "search", "arguments": "{\\"query\\": "}',
    '{"name": "search", "arguments": {"query": "x"}', '{"name": "search", "arguments": {"query": x}}',
    "{'name': 'search', 'arguments': {}}", '{"name": "search" "arguments": {}}', '{"name": "search", "arguments": {},}',
    '{"name": "search", "arguments": {"query": NaN}}', '{"name": "search", "arguments": {"query": 1e999}}',
    '{"name": "search", "parameters": {}, "arguments": 3}', '[{"name": "search"}, 3]', '{"name": "a"} {"name": "b"',
    '{"name": "a"}}', '{"function": {"name": "search"}}', '{"name": "search", "arguments": {"a": "\\ud800"}}',
    '{"name": "search", "arguments": {"query": "x"}} // comment', '```json\n{"name": "search"}\n```',
]  # fmt: skip
_WRAPPINGS = ["<|tool_call_start|>{}<|tool_call_end|>", "<|tool_call_start|>{}", "{}<|tool_call_end|>", "{}",
              "<tool_call>{}</tool_call>", "<tool_call>\n{}", "<|python_tag|>{}", "<think>{}</think>{}"]  # fmt: skip


def test_there_are_a_hundred() -> None:
    assert len(set(_BODIES)) >= 140


@pytest.mark.parametrize("body", _BODIES, ids=[f"{place}-{body[:24]!a}" for place, body in enumerate(_BODIES)])
def test_a_garbled_call_is_parsed_or_refused(body: str) -> None:
    for wrapping in _WRAPPINGS:
        text = wrapping.replace("{}", body)
        for parse in (parse_calls, parse_any_calls):
            try:
                calls = parse(text)
            except CallError as error:
                assert str(error).endswith(".") and len(str(error)) < 300
                continue
            for call in calls:
                # What is passed on is data that the trace and the tools can hold.
                assert call.name and json.loads(json.dumps(call.arguments, allow_nan=False)) == call.arguments
        assert isinstance(without_calls(text), str)
