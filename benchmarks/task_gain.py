"""Two checkpoints on the same held-out examples of tasks: what training between them gained there, and cost elsewhere.

Each is asked with minnow eval, greedily; of every task the differences in correct answers and in the mean value come
with 95% intervals over the pairs of answers (Paired of minnow.loops; the mean's standard error).

    python benchmarks/task_gain.py runs/rl/sft runs/rl/grpo --tasks recipes/e2e.py extraction arithmetic --json gain.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from minnow.cli.main import main as minnow
from minnow.evaluate.measure import score_text
from minnow.evaluate.survey import ending_of, read_answers
from minnow.files import write_json
from minnow.loops import Paired
from minnow.loops.rate import Z_95
from minnow.recipe.run_record import run_of
from minnow.recipe.tasks import load_task
from minnow.tasks import Score, Task


def scores(
    checkpoint: Path, tasks: dict[str, Task], n: int | None, threads: int | None, folder: Path
) -> dict[str, list[Score]]:
    """Every task's verdicts, in the order of its examples, with the answers in ``folder``."""
    words = ["eval", checkpoint, "--tasks", ",".join(tasks), "--out", folder, "--json"]
    words += ["--n", n] if n is not None else []
    words += ["--threads", threads] if threads is not None else []
    with contextlib.redirect_stdout(io.StringIO()):
        code = minnow(list(map(str, words)))
    assert code == 0, f"minnow eval ended with {code}"
    found = {}
    for name, task in tasks.items():
        answers = {row["id"]: row for row in read_answers(folder / f"{task.name}.jsonl")}
        examples = task.examples("held_out", n)
        found[name] = [score_text(each, answers[each.id]["text"], ending_of(answers[each.id])) for each in examples]
    return found


def compared(first: list[Score], second: list[Score]) -> dict[str, Any]:
    """Of the second against the first."""
    paired = Paired.of([each.correct for each in first], [each.correct for each in second])
    differences = [other.value - one.value for one, other in zip(first, second, strict=True)]
    mean = statistics.mean(differences)
    half = Z_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    return {
        "n": paired.total,
        "correct": [rate.as_dict() for rate in paired.rates],
        "gain": [paired.difference, *paired.interval],
        "p_value": paired.p_value,
        "value": [statistics.mean(each.value for each in side) for side in (first, second)],
        "value_gain": [mean, mean - half, mean + half],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--tasks", nargs="+", required=True, help="the one that was trained on, then the others")
    parser.add_argument("--n", type=int, help="examples of each task; by default all, 200 of a task that is drawn")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = run_of(options.first)
    world = None if record is None else record.world()
    tasks = {name: load_task(name, None, world) for name in options.tasks}
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            scores(model, tasks, options.n, options.threads, Path(folder) / side)
            for side, model in (("first", options.first), ("second", options.second))
        )
    found = {name: compared(first[name], second[name]) for name in tasks}
    print(f"{'task':<16}{'n':>6}{'correct':>18}{'gain, 95% interval':>26}{'value':>16}{'gain, 95% interval':>28}")
    for name, each in found.items():
        one, other = (rate["rate"] for rate in each["correct"])
        gain, low, high = each["gain"]
        value, least, most = each["value_gain"]
        print(
            f"{Path(name).stem:<16}{each['n']:>6}{one:>9.1%}{other:>9.1%}{gain:>+9.1%} ({low:+.1%} to {high:+.1%})"
            f"{each['value'][0]:>8.3f}{each['value'][1]:>8.3f}{value:>+9.3f} ({least:+.3f} to {most:+.3f})"
        )
    if options.json:
        write_json(options.json, {"first": str(options.first), "second": str(options.second), "tasks": found})


if __name__ == "__main__":
    main()
