"""Tools over the Model Context Protocol: those of other servers for a model here, and the ones here as such a server."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from minnow.agent.tools import PARAMETER_TYPES, Tool, call_tool
from minnow.data.calls import Call, CallError
from minnow.errors import UserError

if TYPE_CHECKING:
    from mcp.server import Server

SECONDS = 60.0
"""How long a server may take for an answer."""
_MOST_CHARACTERS = 100_000  # of a result that a server here gives; the client's limits are its own


@contextmanager
def mcp_tools(server: str | Server[Any]) -> Iterator[list[Tool]]:
    """The tools of an MCP server while the block lasts.

    What such a server says about its tools need not be true, so all count as having effects, and their results as text from
    outside.

    Args:
        server: a command that speaks MCP on its standard streams, an address (streamable HTTP), or a server in this process.

    Raises:
        UserError: it does not start or answer, two of its tools have one name, or the package mcp is not installed.
    """
    try:
        from anyio.from_thread import start_blocking_portal
        from mcp import Client, StdioServerParameters
    except ImportError as error:
        raise _missing() from error
    target: Any = server
    if isinstance(server, str) and not re.match(r"https?://", server):
        command, *arguments = shlex.split(server) or [""]
        target = StdioServerParameters(command=command, args=arguments)
    with start_blocking_portal() as portal:
        opened = portal.wrap_async_context_manager(Client(target, read_timeout_seconds=SECONDS))
        try:
            client = opened.__enter__()
            listed = portal.call(client.list_tools).tools
        except Exception as error:  # whatever the transport raises
            raise UserError(
                f"the MCP server {server} does not answer ({_reason(error)}); check that it runs"
            ) from error

        def made(name: str) -> Any:
            def call(**arguments: Any) -> str:
                result = portal.call(client.call_tool, name, arguments)
                text = "\n".join(block.text for block in result.content if block.type == "text")
                if result.is_error:
                    raise CallError(text.removeprefix("error: ") or f"{name} failed.")
                return text

            return call

        try:
            tools = [_tool(each, made(each.name)) for each in listed]
            names = [tool.name for tool in tools]
            if len(set(names)) < len(names):
                raise UserError(f"the MCP server {server} has two tools of one name; use one that names them apart")
            yield tools
        finally:
            opened.__exit__(None, None, None)


def mcp_server(tools: Sequence[Tool]) -> Server[Any]:
    """An MCP server that offers ``tools``.

    Raises:
        UserError: the package mcp is not installed.
    """
    try:
        from anyio.to_thread import run_sync
        from mcp import types
        from mcp.server import Server
    except ImportError as error:
        raise _missing() from error

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        schemas = [tool.function_schema()["function"] for tool in tools]
        return types.ListToolsResult(
            tools=[
                types.Tool(name=each["name"], description=each["description"], input_schema=each["parameters"])
                for each in schemas
            ]
        )

    async def call(_: Any, asked: types.CallToolRequestParams) -> types.CallToolResult:
        made = Call(asked.name, dict(asked.arguments or {}))
        text, worked = await run_sync(call_tool, tools, made, _MOST_CHARACTERS)
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=not worked)

    return Server("minnow", on_list_tools=list_tools, on_call_tool=call)


def serve_mcp(tools: Sequence[Tool]) -> None:
    """Offer ``tools`` to the MCP client at the other end of standard input and output, until it leaves.

    Raises:
        UserError: the package mcp is not installed.
    """
    server = mcp_server(tools)
    import anyio
    from mcp.server.stdio import stdio_server

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)


def _tool(listed: Any, function: Any) -> Tool:
    schema = listed.input_schema
    properties = schema.get("properties", {})
    parameters = {name: _kind(each) for name, each in properties.items()}
    optional = frozenset(properties) - frozenset(schema.get("required", ()))
    name = re.sub(r"\W", "_", listed.name, flags=re.ASCII)
    about = " ".join((listed.description or "").split())
    return Tool(name, about, parameters, function, optional, effects=True, outside=True)


def _kind(schema: Any) -> str:
    """The JSON type of an argument; of several, the first that a call can carry."""
    options = schema.get("anyOf", [schema]) if isinstance(schema, dict) else []
    kinds = [each.get("type") for each in options if isinstance(each, dict)]
    flat = [kind for each in kinds for kind in (each if isinstance(each, list) else [each])]
    return next((kind for kind in flat if kind in PARAMETER_TYPES), "string")


def _reason(error: BaseException) -> str:
    """What went wrong, inside a task group's exception too."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _missing() -> UserError:
    return UserError("MCP needs the package mcp: pip install 'minnow[mcp]'")
