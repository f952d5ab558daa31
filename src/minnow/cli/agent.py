"""``minnow agent``: one question to a model with tools. ``minnow index``, ``minnow mcp``: pages and tools for models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from minnow.agent import Limits, Trace, run_agent
from minnow.agent.chat import called_text, returned_text, safe
from minnow.agent.folder import index_folder, read_page
from minnow.agent.long_context import SelfAsker, document_tools
from minnow.agent.long_context import map_reduce as in_parts
from minnow.agent.mcp_tools import serve_mcp
from minnow.agent.pages import PageError
from minnow.cli.agent_tools import foreign_tools, offered_tools
from minnow.cli.models import ModelThreads, TokenizerFolder
from minnow.cli.output import AsJson, emit, warn
from minnow.cli.text_models import NO_SERVER, ServerFlags, open_text_model
from minnow.data.calls import CallError
from minnow.errors import UserError
from minnow.progress import size_text
from minnow.rollout import Sampling
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine

_PART = 4000  # characters of a document in one question
_QUESTIONS = 256  # that a model may ask itself


def agent(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    question: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")],
    /,
    search: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|FILE|ddgs|searxng:URL|brave|tavily|none")] = None,
    tools: Annotated[str | None, tyro.conf.arg(metavar="search,calculator,python,clock|none")] = None,
    mcp: Annotated[str | None, tyro.conf.arg(metavar="COMMAND|URL")] = None,
    allow: Annotated[str | None, tyro.conf.arg(metavar="NAME,…")] = None,
    document: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    map_reduce: bool = False,
    max_calls: int = 8,
    max_new_tokens: int = 256,
    max_tokens: int | None = None,
    max_seconds: float = 600.0,
    valid_calls: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    server: ServerFlags = NO_SERVER,
    as_json: AsJson = False,
) -> None:
    """Ask a model that has tools one question, and see what it looked up.

    Args:
        model: a checkpoint folder, a stage or run folder, a GGUF file, or the address of a server (with --model).
        question: what to find out.
        search: where it searches; by default the encyclopaedia of the model's own run. Brave and Tavily want a key in
            BRAVE_API_KEY or TAVILY_API_KEY.
        tools: names between commas; by default search where there is something to search.
        mcp: an MCP server whose tools it gets too: a command that speaks MCP on its standard streams, or an address.
        allow: those of that server's tools that it may call, at any time.
        document: a file too long for the context, which the model searches, reads in slices and asks itself about.
        map_reduce: ask every part of the document instead, and put the answers together.
        max_calls: calls it may make.
        max_new_tokens: the budget of one turn.
        max_tokens: that it may write in all, looked at between turns.
        max_seconds: after which no further turn or call begins.
        valid_calls: hold it to calls that can be read and fit the tools (a GGUF file of a model that calls as LFM2 does).
        temperature: 0 is greedy.
        seed: of the sampling noise.
    """
    if not question.strip():
        raise UserError("the question is empty; write one in quotes after the model")
    with open_text_model(model, server, tokenizer, threads, max_new_tokens) as opened:
        limits = Limits(max_calls, max_new_tokens, max_tokens, opened.context, max_seconds)
        engine = opened.engine.engine if isinstance(opened.engine, LocalTextEngine) else opened.engine
        part = (
            _PART if opened.context is None else max(200, 2 * (opened.context - max_new_tokens) - len(question) - 200)
        )
        asker = SelfAsker(
            engine, opened.tokenizer, limits, Sampling(temperature, seed=seed), min(part, _PART), _QUESTIONS
        )
        text = None if document is None else _text(document)
        if map_reduce:
            if text is None:
                raise UserError("--map-reduce puts together what is said about a document; name one with --document")
            try:
                answer = in_parts(text, question, asker)
            except CallError as error:
                raise UserError(f"{document} cannot be asked in parts: {error}") from error
            emit(
                {"model": opened.name, "answer": answer, "asked": asker.as_dict()},
                safe(answer) or "(no answer)",
                as_json,
            )
            return
        offered = offered_tools(opened.run, search, tools) + ([] if text is None else document_tools(text, asker))
        task = ChatPrompt("question", [{"role": "user", "content": question}])
        with foreign_tools(mcp, allow) as foreign:
            offered += foreign
            own = Sampling(temperature, seed=seed)
            (trace,) = run_agent(engine, opened.tokenizer, [task], offered, limits, own, valid_calls=valid_calls)
    if trace.finish == "failed":
        raise UserError(f"{opened.name} gave no answer ({trace.error}); see to the server and ask again")
    about = {"model": opened.name, "runtime": opened.runtime, "tools": [tool.name for tool in offered]}
    emit(about | trace.as_dict() | {"asked": asker.as_dict()}, _as_text(trace), as_json)


def _text(file: Path) -> str:
    try:
        return read_page(file, file.name).text
    except PageError as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _as_text(trace: Trace) -> str:
    lines = [line for call in trace.calls for line in (called_text(call), returned_text(call.result))]
    lines.append(safe(trace.answer) or "(no answer)")
    counted = f"{len(trace.calls)} calls, {trace.completion_tokens} tokens, {trace.seconds:.1f} s"
    return "\n".join([*lines, f"[{trace.finish}; {counted}]"])


def index(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    fast: bool = False,
    as_json: AsJson = False,
) -> None:
    """Make a folder of text, Markdown, HTML, PDF and JSON lines searchable, a page per file or line.

    Args:
        folder: where the files are, or one file of JSON lines.
        out: the index file; by default FOLDER.index beside the folder.
        fast: write a folder that tantivy searches, several times faster where there are many pages.
    """
    path = out or folder.resolve().with_name(f"{folder.resolve().name}.index")
    skipped: list[str] = []
    made = index_folder(folder, path, skipped, fast)
    warn(skipped)
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    document = {"index": str(path), "pages": len(made), "bytes": size, "skipped": skipped}
    emit(document, f"{path}: {len(made):,} pages, {size_text(size)}", as_json)


def mcp(
    search: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|FILE|ddgs|searxng:URL|brave|tavily|none")] = None,
    tools: Annotated[str | None, tyro.conf.arg(metavar="search,calculator,python,clock")] = None,
) -> None:
    """Offer Minnow's tools to another program: an MCP server on standard input and output.

    Args:
        search: what web_search and open_page look in, as for minnow agent.
        tools: names between commas; by default search where there is something to search.
    """
    offered = offered_tools(None, search, tools)
    if not offered:
        raise UserError("there is no tool to offer; name some with --tools, or what to search with --search")
    serve_mcp(offered)
