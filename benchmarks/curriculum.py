"""Fine-tuning from easy to hard against shuffled and hard to easy: the same rows, tokens and checkpoint, several seeds.

A ladder of two short trainings of the checkpoint, on rows of their own, grades the rows (minnow data grade). Each seed
draws three quarters of them, and each arm reads these once (minnow sft --epochs 1); scored are held-out examples (minnow
eval), with the difference to shuffled by seed.

    python benchmarks/curriculum.py runs/pocket/pretrain --tasks arithmetic --rows 2000 --seeds 0 1 2 --json curriculum.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from minnow.cli.main import main as minnow
from minnow.files import write_json
from minnow.recipe.run_record import run_of
from minnow.recipe.tasks import load_task

OWN_ROWS = 400
"""Rows of each task that the ladder learns from."""

DRAWN = 0.75
"""Of the graded rows; two seeds of an order would differ in nothing if each took all."""


def run(*words: object) -> dict[str, Any]:
    """A command's JSON document."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = minnow([*map(str, words), "--json"])
    assert code == 0, f"minnow {words[0]} ended with {code}"
    return json.loads(shown.getvalue())


def ladder(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Checkpoints after few and after more steps on rows that come behind the graded ones."""
    record = run_of(options.checkpoint)
    world = None if record is None else record.world()
    rows = []
    for name in options.tasks:
        for each in load_task(name, None, world).examples("train", options.rows + OWN_ROWS)[options.rows :]:
            rows.append({"messages": [*each.messages, *each.reference], "tools": each.tools})
    (folder / "ladder.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        trained(options, folder / "ladder.jsonl", folder / f"ladder-{steps}", "--training.steps", steps)
        for steps in options.ladder
    ]


def trained(options: argparse.Namespace, data: Path, out: Path, *more: object) -> Path:
    """A run folder with the checkpoint fine-tuned on ``data``."""
    flags = ["--row-length", options.row_length, "--rows", options.batch, "--threads", 1]
    flags += ["--training.optimizer.learning-rate", options.rate, "--training.optimizer.muon", True]
    run("sft", options.checkpoint, data, "--out", out, *flags, *more)
    return out


def arms(folder: Path, graded: Path, seed: int) -> dict[str, tuple[Path, list[str]]]:
    """Data and flags of each arm."""
    rows = [json.loads(line) for line in graded.read_text().splitlines()]
    rows = Random(seed).sample(rows, round(DRAWN * len(rows)))
    files = [folder / f"{name}-{seed}.jsonl" for name in ("forward", "backward")]
    for file, each in zip(files, (rows, [row | {"difficulty": 1 - row["difficulty"]} for row in rows]), strict=True):
        file.write_text("\n".join(map(json.dumps, each)))
    return {
        "shuffled": (files[0], []),
        "easy to hard": (files[0], ["--easy-to-hard"]),
        "hard to easy": (files[1], ["--easy-to-hard"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic"])
    parser.add_argument("--rows", type=int, default=2000, help="of each task")
    parser.add_argument(
        "--measured", type=int, default=300, help="rows that the ladder is asked, of all tasks together"
    )
    parser.add_argument("--held-out", type=int, default=200, help="examples of each task that are scored")
    parser.add_argument("--ladder", type=int, nargs="+", default=[20, 80], help="steps of the ladder's trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, graded = ladder(folder, options), folder / "graded.jsonl"
        flags = ["--n", options.rows, "--measured", options.measured, "--threads", 1]
        grades = run("data", "grade", *models, "--prompts", *options.tasks, "--out", graded, *flags)
        scores: dict[str, list[float]] = {}
        steps = 0
        for seed in options.seeds:
            for arm, (data, more) in arms(folder, graded, seed).items():
                out = trained(options, data, folder / f"{arm}-{seed}", "--epochs", 1, "--seed", seed, *more)
                steps = json.loads((out / "sft/result.json").read_text())["steps"]
                asked = ["--tasks", ",".join(options.tasks), "--n", options.held_out, "--threads", 1]
                found = run("eval", out, *asked)["tasks"].values()
                scores.setdefault(arm, []).append(statistics.mean(task["value"]["mean"] for task in found))
                print(f"{arm:<14}seed {seed}: {scores[arm][-1]:.3f}", flush=True)
    print(f"\n{'order':<14}{'mean score':>11}{'against shuffled, by seed':>34}")
    for arm, found in scores.items():
        differences = [one - other for one, other in zip(found, scores["shuffled"], strict=True)]
        said = ", ".join(f"{each:+.3f}" for each in differences)
        print(f"{arm:<14}{statistics.mean(found):>11.3f}{said if arm != 'shuffled' else '':>34}")
    print(f"{steps} steps each; difficulties foretold with rank correlation {grades['foretold']}")
    if options.json:
        plain = {**vars(options), "checkpoint": str(options.checkpoint), "json": None}
        write_json(options.json, {"options": plain, "steps": steps, "grades": grades, "scores": scores})


if __name__ == "__main__":
    main()
