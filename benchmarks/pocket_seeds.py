"""Finished runs of the pocket recipe side by side, as the Markdown tables of docs/results/pocket.md.

    python benchmarks/pocket_seeds.py runs/pocket runs/pocket-2 runs/pocket-3 [--json FILE]

One column per run, then the mean and the range over runs. Rates are of held-out prompts; a bracket is Wilson's 95% interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = dict[str, Any]
STAGES = {"measure-sft": "SFT", "measure-dpo": "DPO", "measure-grpo": "RL", "measure-merge": "merging"}


def load(folder: Path) -> Run:
    """Every stage's ``result.json`` by stage name, and the run's ``summary``."""
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}
    return {**results, "summary": json.loads((folder / "summary.json").read_text())}


def greedy(run: Run, stage: str) -> dict[str, Any]:
    return next(loops for loops in run[stage]["loops"] if loops["temperature"] == 0.0)


def rate(entry: dict[str, Any]) -> str:
    return f"{100 * entry['rate']:.1f}% ({100 * entry['low']:.1f}–{100 * entry['high']:.1f})"


class Table:
    """Rows of a value per run, with the mean and the range beside them."""

    def __init__(self, runs: list[Run], names: list[str]) -> None:
        self.runs, self.names = runs, names
        self.lines: list[str] = []
        self.values: dict[str, list[float]] = {}

    def head(self, title: str) -> None:
        self.lines += ["", f"| {title} | {' | '.join(self.names)} | mean | range |"]
        self.lines.append("|---" + "|---:" * (len(self.names) + 2) + "|")

    def row(
        self, label: str, value: Callable[[Run], float], form: str, show: Callable[[Run], str] | None = None
    ) -> None:
        values = [value(run) for run in self.runs]
        cells = [(show(run) if show else form.format(v)) for run, v in zip(self.runs, values, strict=True)]
        mean, low, high = sum(values) / len(values), min(values), max(values)
        self.values[label] = values
        self.lines.append(
            f"| {label} | {' | '.join(cells)} | {form.format(mean)} | {form.format(low)} to {form.format(high)} |"
        )


def tables(runs: list[Run], names: list[str]) -> Table:
    table = Table(runs, names)
    prompts = greedy(runs[0], "measure-sft")["total"]
    table.head(f"greedy answers that loop, {prompts} loop-prone prompts")
    for stage, label in STAGES.items():
        table.row(
            f"after {label}",
            lambda run, stage=stage: 100 * greedy(run, stage)["rate"],
            "{:.1f}%",
            lambda run, stage=stage: rate(greedy(run, stage)),
        )
    for task, found in greedy(runs[0], "measure-sft")["by_task"].items():
        table.row(
            f"{task} prompts, of {found['total']}: after SFT",
            lambda run, task=task: greedy(run, "measure-sft")["by_task"][task]["count"],
            "{:.0f}",
        )
    each = next(iter(runs[0]["measure-sft"]["tasks"].values()))["total"]
    table.head(f"correct of {each} after SFT → in the end")
    for task in runs[0]["measure-sft"]["tasks"]:
        table.row(
            task,
            lambda run, task=task: run["measure-merge"]["tasks"][task]["count"],
            "{:.0f}",
            lambda run, task=task: " → ".join(
                str(run[stage]["tasks"][task]["count"]) for stage in ("measure-sft", "measure-merge")
            ),
        )
    table.row(
        "pages: mean verifier value",
        lambda run: run["measure-merge"]["tasks"]["page"]["value"],
        "{:.2f}",
        lambda run: " → ".join(f"{run[s]['tasks']['page']['value']:.2f}" for s in ("measure-sft", "measure-merge")),
    )
    table.head("questions about entities never read about")
    for hops in ("one_hop", "two_hop"):
        for book in ("closed_book", "search"):
            table.row(
                f"{hops.replace('_', ' ')}, {book.replace('_', ' ')}",
                lambda run, hops=hops, book=book: 100 * run["agent"][book][hops]["rate"],
                "{:.1f}%",
                lambda run, hops=hops, book=book: rate(run["agent"][book][hops]),
            )
    table.head("exported files")
    for place, file in enumerate(runs[0]["export"]["files"]):
        kind = file["type"]
        table.row(
            f"{kind}: greedy tokens equal, of {file['positions']}",
            lambda run, place=place: run["export"]["files"][place]["agree"],
            "{:.0f}",
        )
        for task, found in file["tasks"].items():
            table.row(
                f"{kind}: {task}, of {found['total']}",
                lambda run, place=place, task=task: run["export"]["files"][place]["tasks"][task]["count"],
                "{:.0f}",
            )
    table.head("cost")
    table.row("wall time, minutes", lambda run: run["summary"]["seconds"] / 60, "{:.1f}")
    table.row("peak memory, GiB", lambda run: run["summary"]["peak_rss_bytes"] / 2**30, "{:.2f}")
    for stage in ("pretrain", "sft"):
        table.row(f"{stage}: tokens/s", lambda run, stage=stage: run[stage]["tokens_per_second"], "{:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with all stages finished")
    parser.add_argument("--json", type=Path, help="also write the values, a list per row")
    arguments = parser.parse_args()
    table = tables([load(folder) for folder in arguments.runs], [folder.name for folder in arguments.runs])
    print("\n".join(table.lines[1:]))
    if arguments.json:
        arguments.json.write_text(json.dumps(table.values, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
