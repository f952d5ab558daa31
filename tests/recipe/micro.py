"""Recipes/pocket.yaml in miniature, and a server that runs `minnow` command lines in forked processes.

``python micro.py`` imports everything once and then runs each request (a JSON object a line on stdin) in a child of
its own, so that a test can kill the process that does the work, again and again, without paying for the imports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layers": ["conv", "attn", "conv"],
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "max_positions": 2048,
}
GATE = {"first": 60, "loop_prompts": 3, "task_prompts": 1, "max_new_tokens": 56, "every": 2}


def training(steps: int, rate: float, **optimizer: Any) -> dict[str, Any]:
    """Settings that save and log at every step."""
    return {
        "steps": steps,
        "log_every": 1,
        "save_seconds": 0.0,
        "optimizer": {"learning_rate": rate, **optimizer},
    }


def recipe() -> dict[str, Any]:
    """Every stage of recipes/pocket.yaml under its name."""
    small = {"examples": 2, "loop_prompts": 8, "max_new_tokens": 256}
    healing = {"muon": False, "weight_decay": 0.0}
    rollouts = {"prompts": 4, "temperatures": [0.0, 1.0, 1.0], "max_new_tokens": 72, "row_length": 256}
    return {
        "name": "micro",
        "seed": 3,
        "threads": 1,
        "data": {"kind": "pocket", "entities": 300},
        "model": MODEL,
        "stages": {
            "tokenizer": {"documents": 200},
            "pretrain": {
                "documents": 200,
                "row_length": 64,
                "rows": 8,
                "measure_every": 5,
                "held_out_rows": 8,
                "evaluate": {"every": 4, "prompts": 3, "prompt_tokens": 8, "max_new_tokens": 40},
                "training": training(12, 2e-2, muon=True),
            },
            "sft": {
                "examples": 20,
                "row_length": 64,
                "rows": 8,
                "evaluate": {"every": 6, "prompts": 3, "max_new_tokens": 40},
                "training": training(12, 1e-2, muon=True),
            },
            "measure-sft": {"kind": "measure", "checkpoint": "sft", "temperatures": [0.0, 1.0], **small},
            "pairs": {
                "checkpoint": "sft",
                "loop_prompts": 40,
                "task_prompts": 2,
                "pairs": {"temperatures": [0.8, 1.0, 1.0], "max_new_tokens": 320, "score_gap": 0.0, "loop_share": 1.0},
            },
            "dpo": {
                "checkpoint": "sft",
                "pairs": "pairs",
                "pairs_per_step": 2,
                "refresh_every": 2,
                "max_new_tokens": 320,
                "training": training(4, 1e-3, **healing),
                "gate": GATE,
            },
            "measure-dpo": {"kind": "measure", "checkpoint": "dpo", **small},
            "grpo": {
                "checkpoint": "dpo",
                "rollouts": rollouts,
                "training": training(3, 1e-3, **healing),
                "gate": GATE,
            },
            "measure-grpo": {"kind": "measure", "checkpoint": "grpo", **small},
            "merge": {"checkpoints": ["dpo", "grpo"], "shares": [0.5], "gate": GATE},
            "measure-merge": {"kind": "measure", "checkpoint": "merge", **small},
            "export": {
                "checkpoint": "merge",
                "types": ["F16", "Q8_0"],
                "positions": 120,
                "examples": 2,
                "max_new_tokens": 16,
            },
            "profile": {"export": "export", "prompts": [32], "decode_depths": [16], "repeats": 2},
            "agent": {"checkpoint": "merge", "questions": 3, "max_new_tokens": 24, "max_calls": 2},
            "report": {},
        },
    }


def write_recipe(folder: Path) -> Path:
    """The recipe as ``micro.yaml`` in ``folder``, which is made; its run folder is ``runs/micro`` there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(recipe(), sort_keys=False))
    return path


@dataclass(frozen=True)
class Finished:
    """How a command line ended: ``code`` is minus the signal's number where one killed it."""

    code: int
    out: str
    err: str


class Server:
    """This file run as a script; one command at a time, in the current folder ``folder``."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._folder = Path()

    def start(self, folder: Path, *arguments: str, at: tuple[str, int, int] | None = None) -> int:
        """Begin ``minnow`` with ``arguments``; returns its process id.

        Args:
            at: ``(stage, number, signal)``: when something appears whole in that stage's folder for the
                ``number``-th time, or ``done.json`` is about to, the process sends itself the signal.
        """
        self._folder = folder
        self._ask({"arguments": arguments, "folder": str(folder), "at": at})
        return int(self._answer())

    def wait(self) -> Finished:
        """Until the command started last has ended."""
        code = int(self._answer())
        return Finished(code, (self._folder / "out.txt").read_text(), (self._folder / "err.txt").read_text())

    def run(self, folder: Path, *arguments: str, at: tuple[str, int, int] | None = None) -> Finished:
        """A command from beginning to end."""
        self.start(folder, *arguments, at=at)
        return self.wait()

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server of forked runs died"
        return line


def _watch_writes(at: tuple[str, int, int] | None) -> None:
    """Note in ``writes.txt`` whatever appears whole, and send the signal when it is time."""
    stage, number, sent = at or ("", 0, 0)
    place, seen, real = Path("runs/micro") / stage, 0, os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        nonlocal seen
        if at is not None and Path(target).is_relative_to(place):
            seen += 1
            if seen == number or (seen < number and Path(target) == place / "done.json"):
                seen = number
                os.kill(os.getpid(), sent)
        real(source, target, **options)
        with open("writes.txt", "a") as file:
            file.write(f"{target}\n")

    os.replace = replace  # type: ignore[assignment]


def _take_for_right_what_ends() -> None:
    """Whether a model of twelve steps loops hangs on the processor's roundings, and it is never right: pairs would be luck."""
    from minnow.posttrain import pairs

    real = pairs.choose_pair

    def choose(example: Any, candidates: Any, *rest: Any) -> Any:
        return real(example, [dataclasses.replace(each, correct=True) for each in candidates], *rest)

    pairs.choose_pair = choose


def _child(request: dict[str, Any]) -> None:
    from minnow.cli.main import main

    os.chdir(request["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    code = 1
    try:
        _watch_writes(request["at"])
        _take_for_right_what_ends()
        code = main(request["arguments"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except Exception:  # noqa: BLE001  told as a traceback and exit code 1, as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import torch
    import transformers
    import tyro  # noqa: F401  imported here for the children

    import minnow.cli.run  # noqa: F401
    from minnow.recipe.registry import stage_kinds

    torch.set_num_threads(1)
    stage_kinds()
    transformers.Lfm2ForCausalLM  # noqa: B018  transformers imports a model when it is first named
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _child(json.loads(line))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
