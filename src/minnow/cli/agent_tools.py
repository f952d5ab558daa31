"""The tools a command offers a model: what --search and --tools name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from minnow import agent
from minnow.agent.mcp_tools import mcp_tools
from minnow.agent.search import LocalSearch, SearchEngine, open_search
from minnow.agent.tools import clock_tool
from minnow.agent.web_tools import web_tools
from minnow.errors import UserError
from minnow.recipe.mapping import nearest
from minnow.recipe.run_record import RunRecord, run_of

NAMES = ("search", "calculator", "python", "clock", "none")


def offered_tools(run: RunRecord | None, search: str | None, wanted: str | None) -> list[agent.Tool]:
    """Tools by name; without names, search where there is something to search.

    Args:
        run: the model's own. One of the pocket world searches with the one tool it was trained on, and by default its own
            encyclopaedia; other models get ``web_search`` and ``open_page``.
        search: a folder, an index file, a run folder, the name of a search engine, or ``none``.
        wanted: names between commas.

    Raises:
        UserError: an unknown name, nothing to search, or names that exclude each other.
    """
    names = [] if wanted is None else [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in NAMES:
            raise UserError(f"there is no tool {name!r}; {nearest(name, NAMES)}")
    searched = search is not None and search != "none"
    if names and "search" not in names and searched:
        raise UserError(f"--search {search} and --tools {wanted} exclude each other; leave one of them out")
    engine = None
    if search != "none" and (not names or "search" in names):
        engine = _world_search(run) if search is None else _engine(search)
    if "search" in names and engine is None:
        raise UserError("there is nothing to search; name a folder of pages or a run folder with --search")
    tools: list[agent.Tool] = []
    if engine is not None:
        trained = run is not None and run.pocket_run() is not None
        tools += [agent.search_tool(engine)] if trained else web_tools(engine)
    if "calculator" in names:
        tools.append(agent.calculator_tool())
    if "clock" in names:
        tools.append(clock_tool())
    if "python" in names:
        from minnow.agent.sandbox import python_tool

        tools.append(python_tool())
    return tools


@contextmanager
def foreign_tools(server: str | None, allowed: str | None) -> Iterator[list[agent.Tool]]:
    """The tools of an MCP server that the user allows, while the block lasts; none without a server.

    Args:
        allowed: names between commas. What they name may run at any time, also after text from outside was read.

    Raises:
        UserError: nothing is allowed, or a name that the server does not have.
    """
    if server is None:
        if allowed is not None:
            raise UserError(f"--allow {allowed} names tools of an MCP server; name the server with --mcp")
        yield []
        return
    with mcp_tools(server) as offered:
        names = [] if allowed is None else [name.strip() for name in allowed.split(",")]
        known = {tool.name: tool for tool in offered}
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            said = f"has no tool {unknown[0]!r}" if unknown else "may have tools that change something"
            raise UserError(f"the MCP server {said}; name those to be called with --allow, of {', '.join(known)}")
        yield [replace(known[name], effects=False) for name in names]


def _world_search(run: RunRecord | None) -> LocalSearch | None:
    """The encyclopaedia a run was trained on; None where there is none."""
    world = None if run is None else run.world()
    return None if world is None else LocalSearch(agent.SearchIndex.build(world.pages()))


def _engine(source: str) -> SearchEngine:
    own = Path(source)
    run = run_of(own) if (own / "recipe.json").is_file() else None
    return _world_search(run) or open_search(source)
