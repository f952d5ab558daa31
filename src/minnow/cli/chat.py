"""``minnow chat``: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from minnow import agent
from minnow.cli.models import OpenModel, open_model
from minnow.cli.output import Threads
from minnow.errors import UserError
from minnow.recipe.run_record import RunRecord, run_of
from minnow.rollout import Sampling

_PAGE_FILES = (".txt", ".md")


def chat(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    search: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|none")] = None,
    tools: Annotated[
        Literal["search", "calculator", "none"] | None, tyro.conf.arg(metavar="search|calculator|none")
    ] = None,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    threads: Threads = None,
) -> None:
    """Talk to a model; piped input is one question a line.

    Args:
        model: a checkpoint folder, a stage or run folder, or a GGUF file.
        search: what the search tool finds pages in: a run folder (its encyclopaedia) or a folder of .txt and .md
            files, one page each; by default the encyclopaedia of the model's own run.
        tools: the tool on offer, one at a time as in training; by default search where there is something to search.
        temperature: 0 is greedy.
        max_new_tokens: the budget of one turn.
        seed: of the sampling noise.
        tokenizer: model folder with the tokenizer of a GGUF file.
        threads: of torch or llama.cpp.
    """
    named = search is not None and str(search) != "none"
    if named and tools in ("calculator", "none"):
        raise UserError(f"--search {search} and --tools {tools} exclude each other; leave one of them out")
    with open_model(model, tokenizer, threads, max_new_tokens) as opened:
        limits = agent.Limits(max_new_tokens=max_new_tokens, max_context=opened.context)
        session = agent.ChatSession(
            opened.engine, opened.tokenizer, _tools(opened, search, tools), limits, Sampling(temperature, seed=seed)
        )
        agent.chat(session)


def _tools(opened: OpenModel, search: Path | None, wanted: str | None) -> list[agent.Tool]:
    if wanted == "calculator":
        return [agent.calculator_tool()]
    index = None
    if wanted != "none" and str(search) != "none":
        index = _world_index(opened.run) if search is None else _folder_index(search)
    if index is not None:
        return [agent.search_tool(index)]
    if wanted == "search":
        raise UserError("there is nothing to search; name a folder of pages or a run folder with --search")
    return []


def _world_index(run: RunRecord | None) -> agent.SearchIndex | None:
    """The encyclopaedia a run was trained on; None where there is none."""
    world = None if run is None else run.world()
    return (
        None if world is None else agent.SearchIndex.build((page.id, page.title, page.text) for page in world.pages())
    )


def _folder_index(folder: Path) -> agent.SearchIndex:
    """An index over a run's encyclopaedia, or over the text files of a folder, by their names.

    Raises:
        UserError: the folder is missing or has no pages, or a file is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} to search; check the path, or give --search none")
    run = run_of(folder) if (folder / "recipe.json").is_file() else None
    if (index := _world_index(run)) is not None:
        return index
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PAGE_FILES and file.is_file())
    if not files:
        raise UserError(f"{folder} holds no {' or '.join(_PAGE_FILES)} file to search; name a folder of pages")
    return agent.SearchIndex.build((str(file.relative_to(folder)), file.stem, _page_text(file)) for file in files)


def _page_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text at byte {error.start}; convert or remove it") from error
