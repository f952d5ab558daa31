"""What README and docs show exists: every command parses, every link leads somewhere, every name is there."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minnow.cli.main import COMMANDS, main
from minnow.errors import UserError
from minnow.loops import RULES, find_loop
from minnow.recipe.registry import stage_kinds
from minnow.recipe.schema import load_recipe
from minnow.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def prose(text: str) -> str:
    """A page without its fenced blocks, which may hold anything."""
    return FENCE.sub("", text)


def shown_commands(text: str) -> Iterator[str]:
    """Command lines of a page's shell blocks, without comments, and the inline code that could be one."""
    for language, block in FENCE.findall(text):
        if language == "sh":
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield shlex.join(words)
    yield from (span for span in SPAN.findall(prose(text)) if span.startswith(("minnow ", "make ")))


def parts(command: str) -> Iterator[list[str]]:
    """The words of each command in a pipe."""
    words = shlex.split(command)
    while "|" in words:
        cut = words.index("|")
        yield words[:cut]
        words = words[cut + 1 :]
    yield words


def anchor(heading: str) -> str:
    """GitHub's id of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def check_minnow(words: list[str], monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    """Parse the words after ``minnow`` with the real flags; of a run, resolve the recipe and its stages too."""
    if " ".join(words) in COMMANDS or words == ["--help"]:
        return  # a command named in a sentence
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with monkeypatch.context() as patch:
        for command in COMMANDS.values():
            path, _, name = command.function.partition(":")
            module = importlib.import_module(path)
            function = getattr(module, name)

            @functools.wraps(function)
            def parsed(*given: Any, **named: Any) -> int:
                calls.append((given, named))
                return 0

            patch.setattr(module, name, parsed)
        try:
            code = main(words)
        except SystemExit as error:  # how tyro ends on a flag it does not know
            code = int(error.code or 0)
    assert (code, len(calls)) == (0, 1), f"minnow {' '.join(words)} does not parse"
    if words[0] == "run":
        given, named = calls[0]
        overrides = [
            f"data.path={text_file}" if one.startswith("data.path=") else one for one in named.get("overrides", ())
        ]
        recipe = load_recipe(ROOT / given[0], overrides, named.get("run_folder"))
        for stage in (named.get("restart_from"), named.get("only")):
            assert stage is None or stage in recipe.stages, f"{given[0]} has no stage {stage}"


def check_command(command: str, monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    """Check one shown command line as far as that goes without running it."""
    for words in parts(command):
        while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            words = words[1:]
        program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
        if program == "minnow":
            check_minnow(arguments, monkeypatch, text_file)
        elif program == "torchrun":
            place = arguments.index("minnow")
            assert arguments[place - 1] == "-m", command
            check_minnow(arguments[place + 1 :], monkeypatch, text_file)
        elif program == "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(arguments) <= set(targets), f"{command}: the Makefile has no such target"
        elif program == "python":
            script = (ROOT / arguments[0]).read_text()
            assert all(f'"{flag}"' in script for flag in arguments if flag.startswith("--")), command
        else:
            assert program in ("echo", "."), f"{command}: nothing here can check it"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Stands for the reader's own file."""
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "some text"}\n')
    return file


@EVERY_PAGE
def test_every_command_shown_parses(page: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    for command in shown_commands(page.read_text(encoding="utf-8")):
        check_command(command, monkeypatch, text_file)


@pytest.mark.parametrize(
    "command",
    [
        "minnow inspekt runs/pocket",
        "minnow inspect runs/pocket --contexts 4096",
        "minnow run recipes/pocket.yaml --only evaluate",
        "minnow export runs/pocket --types Q8_0",
        "make demos",
        "python benchmarks/pretrain_step.py --thread 2",
        "ls runs",
    ],
)
def test_a_wrong_command_is_noticed(command: str, monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    with pytest.raises(AssertionError):
        check_command(f"echo hello | {command}", monkeypatch, text_file)


def test_a_wrong_recipe_key_is_noticed(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    with pytest.raises(UserError, match="learning_rate"):
        check_command(
            "minnow run recipes/books.yaml --set data.path=FILE --set stages.pretrain.training.optimizer.learning_rat=1",
            monkeypatch,
            text_file,
        )


@EVERY_PAGE
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        if fragment:
            headings = HEADING.findall(prose(target.read_text(encoding="utf-8")))
            assert fragment in map(anchor, headings), f"{page.name} links to {link}, but there is no such heading"


@EVERY_PAGE
def test_every_file_named_in_code_type_exists(page: Path) -> None:
    for span in SPAN.findall(prose(page.read_text(encoding="utf-8"))):
        if re.fullmatch(r"(src|recipes|tests|docs|benchmarks)/[\w./-]+", span):
            assert (ROOT / span).exists(), f"{page.name} names {span}, which is not there"


@EVERY_PAGE
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"\{\{.*?\}\}", page.read_text(encoding="utf-8")) == []


def table_names(page: Path) -> set[str]:
    """Everything in code type in the first cells of a page's tables."""
    rows = re.findall(r"^\| (.*?) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for row in rows for name in SPAN.findall(row)}


def test_the_readme_lists_every_command() -> None:
    shown = table_names(ROOT / "README.md")
    assert [name for name in COMMANDS if not any(one.startswith(f"minnow {name}") for one in shown)] == []


def test_the_docs_list_every_loop_rule_stage_and_task() -> None:
    assert set(RULES) <= table_names(ROOT / "docs/loops.md")
    kinds = {kind for kind, made in stage_kinds().items() if made.run.__module__.startswith("minnow.")}
    assert kinds <= table_names(ROOT / "docs/architecture.md")
    rows = re.findall(r"^\| (\w+) \|", (ROOT / "docs/pocket.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(TASKS) <= set(rows)


def test_the_loop_shown_is_what_find_loop_says() -> None:
    text = (ROOT / "docs/loops.md").read_text(encoding="utf-8")
    shown = re.search(r"^find_loop\((.+)\)  # (.+)$", text, re.MULTILINE)
    assert shown is not None
    assert repr(find_loop(eval(shown[1]))) == shown[2]
