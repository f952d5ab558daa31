"""The additive latency model and the memory model against designs they have not seen.

    python benchmarks/latency_model.py --widths 512 640 --unseen 12 --repeats 5 --out runs/latency-model

Measures a block table for each width, draws unseen designs of the same budget (seeded), measures each whole and prints
predicted against measured. What was measured stays in the folder's journal, so the command goes on where it was stopped.
About eight seconds a model on an idle core: twelve models a width and the unseen ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from minnow.cli.output import columns
from minnow.device.block_table import table_designs
from minnow.device.design import Measuring, block_tables, measured
from minnow.device.design_space import Budget, Space, fitting
from minnow.device.journal import Journal
from minnow.device.machine import load_average
from minnow.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[448, 512, 640, 768])
    parser.add_argument("--unseen", type=int, default=12, help="designs to predict, spread over the widths")
    parser.add_argument("--params", type=float, nargs=2, default=[90e6, 110e6])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/latency-model"))
    given = parser.parse_args()

    budget = Budget(10**9, (int(given.params[0]), int(given.params[1])))
    kept = fitting(Space(widths=tuple(given.widths)), budget).kept
    journal, how = Journal(given.out / "journal.jsonl"), Measuring(given.threads, given.repeats)
    load = load_average()
    random = np.random.default_rng(0)
    table, unseen = [], []
    for place in range(given.unseen):
        width = given.widths[place % len(given.widths)]
        wide = [one for one in kept if one.width == width]
        seen = {*table_designs(wide), *unseen}
        pool = [one for one in wide if one not in seen]
        unseen.append(pool[random.integers(len(pool))])
    for width in given.widths:
        table += table_designs([one for one in kept if one.width == width])
    # In turns with each other, so that the machine's drift is not taken for the model's error.
    found = measured([*table, *unseen], budget, journal, how, "designs")
    tables = block_tables(kept, budget, journal, how)
    rows, errors = [["design", "TTFT at 64", "predicted", "token", "predicted", "memory", "predicted"]], []
    for one in unseen:
        real, table_of = found[one], tables[one.width, one.kind]
        ttft, token = table_of.predict(one)
        memory = table_of.memory(one, budget.context)
        errors.append([ttft / real["ttft_ms"] - 1, token / real["token_ms"] - 1, memory / real["memory"] - 1])
        cells = [one.name]
        cells += [f"{real['ttft_ms']:.2f} ms", f"{errors[-1][0]:+.1%}", f"{real['token_ms']:.3f} ms"]
        rows.append([*cells, f"{errors[-1][1]:+.1%}", f"{real['memory'] / 1e6:.1f} MB", f"{errors[-1][2]:+.1%}"])
    worst = np.abs(errors).max(axis=0)
    print(columns(rows))
    print(f"largest error: prefill {worst[0]:.1%}, decode {worst[1]:.1%}, memory {worst[2]:.1%}")
    print(f"load average before {load:.2f}; least share of its core {min(f['cpu_share'] for f in found.values()):.0%}")
    fits = {f"{width}": table.errors for (width, _), table in tables.items()}
    document = {
        "designs": [one.name for one in unseen],
        "errors": errors,
        "largest": dict(zip(("prefill", "decode", "memory"), worst.tolist(), strict=True)),
        "fit": fits,
        "measured": [found[one] for one in unseen],
        "load_average": load,
    }
    write_json(given.out / "latency_model.json", document)


if __name__ == "__main__":
    main()
