from __future__ import annotations

import errno
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from minnow.cli import main as package_main
from minnow.cli.main import COMMANDS, Command, main
from minnow.errors import UserError
from minnow.recipe.runner import Stopped

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Register a function as a command for the length of a test."""

    def register(name: str, function: Callable[..., object]) -> None:
        module = types.ModuleType("toy_command")
        module.function = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "toy_command", module)
        monkeypatch.setitem(COMMANDS, name, Command("toy_command:function", "a toy"))

    return register


def test_the_entry_point_is_main() -> None:
    assert package_main is main


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from minnow.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'numpy', 'transformers', 'tyro', 'yaml', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": SOURCE}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_no_command_is_a_mistake_and_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: minnow COMMAND")


def test_an_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rum"]) == 2
    assert capsys.readouterr().err == "minnow: there is no command 'minnow rum'; did you mean run?\n"


def test_flags_reach_the_function_and_its_exit_code_comes_back(command: Callable[..., None]) -> None:
    seen: list[tuple[int, bool]] = []

    def function(number: int = 1, loud: bool = False) -> int:
        seen.append((number, loud))
        return 3

    command("toy", function)
    assert main(["toy", "--number", "4", "--loud"]) == 3
    assert seen == [(4, True)]


def test_a_group_of_two_words(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command("toys measure", lambda: None)
    assert main(["toys", "measure"]) == 0
    assert main(["toys"]) == 2
    assert "toys measure" in capsys.readouterr().out
    assert main(["toys", "mesure"]) == 2
    assert "did you mean toys measure?" in capsys.readouterr().err


def _caused_by_full_disk() -> Exception:
    error = ValueError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (UserError("x is missing; add it"), 2, "minnow: x is missing; add it\n"),
        (KeyboardInterrupt(), 130, "minnow: stopped\n"),
        (Stopped("stopped in sft", 143), 143, "minnow: stopped in sft\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "minnow: the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "minnow: the disk is full"),
        (_caused_by_full_disk(), 2, "minnow: the disk is full"),
    ],
)
def test_errors_for_the_user_are_a_sentence_and_a_code(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, part: str
) -> None:
    def function() -> None:
        raise error

    command("toy", function)
    assert main(["toy"]) == code
    assert capsys.readouterr().err.startswith(part)


def test_a_bug_keeps_its_traceback(command: Callable[..., None]) -> None:
    def function() -> None:
        raise ZeroDivisionError

    command("toy", function)
    with pytest.raises(ZeroDivisionError):
        main(["toy"])
