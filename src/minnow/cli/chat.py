"""``minnow chat``: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from minnow import agent
from minnow.cli.agent_tools import foreign_tools, offered_tools
from minnow.cli.models import ModelThreads, TokenizerFolder, open_model
from minnow.rollout import Sampling


def chat(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    search: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|FILE|ddgs|searxng:URL|brave|tavily|none")] = None,
    tools: Annotated[str | None, tyro.conf.arg(metavar="search,calculator,python,clock|none")] = None,
    mcp: Annotated[str | None, tyro.conf.arg(metavar="COMMAND|URL")] = None,
    allow: Annotated[str | None, tyro.conf.arg(metavar="NAME,…")] = None,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
) -> None:
    """Talk to a model; piped input is one question a line.

    Args:
        model: a checkpoint folder, a stage or run folder, or a GGUF file.
        search: what the search tool finds pages in: a run folder (its encyclopaedia), a folder of files or an index of
            one, or a search engine of the web; by default the encyclopaedia of the model's own run.
        tools: the tools on offer, names between commas; the pocket models know one at a time. By default search where
            there is something to search.
        mcp: an MCP server whose tools it gets too: a command that speaks MCP on its standard streams, or an address.
        allow: those of that server's tools that it may call, at any time.
        temperature: 0 is greedy.
        max_new_tokens: the budget of one turn.
        seed: of the sampling noise.
    """
    with open_model(model, tokenizer, threads, max_new_tokens) as opened, foreign_tools(mcp, allow) as foreign:
        limits = agent.Limits(max_new_tokens=max_new_tokens, max_context=opened.context)
        session = agent.ChatSession(
            opened.engine,
            opened.tokenizer,
            [*offered_tools(opened.run, search, tools), *foreign],
            limits,
            Sampling(temperature, seed=seed),
        )
        agent.chat(session)
