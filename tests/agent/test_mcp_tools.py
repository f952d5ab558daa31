"""Minnow's tools through an MCP server and back, in this process and in another."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import minnow
from minnow.agent import SearchIndex, Tool, calculator_tool
from minnow.agent.loop import run_agent
from minnow.agent.mcp_tools import mcp_server, mcp_tools
from minnow.agent.search import LocalSearch
from minnow.agent.tools import call_tool
from minnow.agent.web_tools import web_tools
from minnow.cli.agent_tools import foreign_tools
from minnow.cli.main import main
from minnow.data.calls import Call
from minnow.errors import UserError
from minnow.rollout.text_engine import ChatPrompt

pytest.importorskip("mcp")


def test_tools_come_back_from_a_server_as_they_went_in(index: SearchIndex) -> None:
    ours = [calculator_tool(), *web_tools(LocalSearch(index))]
    with mcp_tools(mcp_server(ours)) as theirs:
        assert [tool.function_schema() for tool in theirs] == [tool.function_schema() for tool in ours]
        assert all(tool.effects and tool.outside for tool in theirs)  # whatever a server says of itself
        for call in (
            Call("calculator", {"expression": "6 * 7"}),
            Call("web_search", {"query": "Who is the mayor of Velm?"}),
            Call("open_page", {"url": "p2", "looking_for": "length"}),
            Call("open_page", {"url": "nowhere"}),
            Call("calculator", {"expression": "1 / 0"}),
        ):
            text, worked = call_tool(ours, call, 2000)
            again, works = call_tool(theirs, call, 2000)
            assert (again, works) == (text, worked)


def test_a_model_calls_one_only_with_consent(scripted: Any) -> None:
    script = ['<|tool_call_start|>[calculator(expression="6 * 7")]<|tool_call_end|>', "42"]
    task = ChatPrompt("q", [{"role": "user", "content": "6 * 7?"}])
    with mcp_tools(mcp_server([calculator_tool()])) as tools:
        for consent, said in ((None, "does not let"), (lambda call: True, "42")):
            engine = scripted(*script)
            (trace,) = run_agent(engine, engine.tokenizer, [task], tools, consent=consent)
            assert said in trace.calls[0].result


def test_arguments_of_other_servers_are_read_as_far_as_a_call_can_carry_them() -> None:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server = MCPServer("other")

    @server.tool(name="add-up")
    def add(a: int, b: float | None = None, names: list[str] | None = None, more: dict[str, int] | None = None) -> str:
        """Adds
        things up."""
        if a < 0:
            raise ToolError("a is negative")
        return str(a + (b or 0))

    with mcp_tools(server) as (tool,):
        assert (tool.name, tool.description) == ("add_up", "Adds things up.")
        assert tool.parameters == {"a": "integer", "b": "number", "names": "array", "more": "object"}
        assert tool.optional == {"b", "names", "more"}
        assert call_tool([tool], Call("add_up", {"a": 1, "b": 1.5}), 100) == ("2.5", True)
        text, worked = call_tool([tool], Call("add_up", {"a": -1}), 200)
        assert not worked and "a is negative" in text


def test_two_tools_of_one_name_are_refused() -> None:
    def made(name: str) -> Tool:
        return Tool(name, "", {}, lambda: "")

    with pytest.raises(UserError, match="two tools of one name"), mcp_tools(mcp_server([made("a.b"), made("a_b")])):
        pass


def test_the_command_serves_the_program_that_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minnow.agent.mcp_tools.SECONDS", 300.0)  # a busy machine takes long to start it
    # Such a program gets hardly anything of the environment.
    source = Path(minnow.__file__).parents[1]
    command = f"env PYTHONPATH={shlex.quote(str(source))} {sys.executable} -m minnow mcp --tools calculator,clock"
    with foreign_tools(command, "calculator") as tools:
        assert [tool.name for tool in tools] == ["calculator"] and not tools[0].effects
        assert call_tool(tools, Call("calculator", {"expression": "2**70"}), 100) == (str(2**70), True)


@pytest.mark.parametrize(
    ("server", "allowed", "message"),
    [
        (None, "a", "name the server with --mcp"),
        ("", "a", "does not answer"),
        ("no-such-program-here --x", "a", "does not answer"),
        ("http://127.0.0.1:9/mcp", "a", "does not answer"),
        (mcp_server([calculator_tool()]), None, "name those to be called with --allow, of calculator"),
        (mcp_server([calculator_tool()]), "python", "has no tool 'python'"),
    ],
)
def test_bad_servers_and_names_are_user_errors(server: Any, allowed: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message), foreign_tools(server, allowed):
        pass


def test_nothing_to_offer_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp"]) == 2
    assert "there is no tool to offer" in capsys.readouterr().err
