"""Which part of post-training ends doom loops: one table out of finished or unfinished runs of recipes/headline.yaml.

For every arm that has been measured: greedy loops and answers cut without one, the same at the other temperatures, the mean
task value, and what the arm's own stage took. Rates carry Wilson's 95% interval.

    python benchmarks/headline.py RUN_FOLDER ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ARMS = {
    "sft": "SFT",
    "dpo-by-score": "DPO, pairs by score alone",
    "dpo": "DPO, looping answers rejected first",
    "ftpo": "FTPO at the loop's first token",
    "grpo-no-penalty": "RL from SFT, no penalty",
    "grpo": "RL from SFT, penalty",
    "all": "DPO, then RL with penalty",
}


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def row(run: Path, stage: str) -> list[str] | None:
    """One arm's cells, None where it is not measured yet."""
    file = run / f"measure-{stage}" / "result.json"
    if not file.exists():
        return None
    measured = read(file)
    cells = [run.name, ARMS[stage]]
    for rate in measured["loops"]:
        interval = f"{100 * rate['low']:.2f}–{100 * rate['high']:.2f}"
        cells.append(
            f"{rate['count']} of {rate['total']}: {100 * rate['rate']:.2f}% ({interval}); {rate['truncated']} cut"
        )
    tasks = measured["tasks"].values()
    cells.append(f"{sum(task['value'] for task in tasks) / len(tasks):.3f}")
    trained = {} if stage == "sft" else read(run / stage / "result.json")
    cells.append(f"{trained['best_step']} of {trained['steps']}" if trained else "")
    cells.append(f"{trained['tokens'] / 1000:.0f}k, {trained['seconds'] / 60:.1f} min" if trained else "")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    runs = parser.parse_args().runs
    first = read(next(run for run in runs if (run / "measure-sft/result.json").exists()) / "measure-sft/result.json")
    temperatures = [f"loops at T = {rate['temperature']:g}" for rate in first["loops"]]
    head = ["run", "arm", *temperatures, "mean task value", "step kept", "trained tokens, time"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for run in runs:
        for stage in ARMS:
            if cells := row(run, stage):
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
