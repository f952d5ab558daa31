"""kill -9 at random moments of a training, twenty times: does what goes on afterwards equal a run that nothing stopped?

A small LFM2 trains in forked processes that are killed wherever they are (in a pass, in the update, in a save); each
next one goes on from the state file. Every step that any of them makes is compared with an uninterrupted run's, bit by bit,
and so are weights and moments at the end. The training is that of tests/train/run_and_die.py.

    python benchmarks/kill.py [--steps 200] [--kills 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "tests/train/run_and_die.py"


def run(folder: Path, steps: int, kills: int) -> tuple[list[tuple[int, str]], int, str]:
    """Every step made with its loss in hexadecimal, the kills, and the digest of weights and moments at the end."""
    command = [sys.executable, str(SCRIPT), str(folder), str(steps), str(kills)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    made = [(int(step), loss) for step, loss in (line.split() for line in told if " " in line)]
    return made, told.count("killed"), told[-1]


def measure(steps: int, kills: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        straight, _, wanted = run(Path(one), steps, 0)
        made, killed, found = run(Path(other), steps, kills)
    losses = dict(straight)
    return {
        "steps": steps,
        "killed": killed,
        "steps_made": len(made),
        "steps_made_again": len(made) - steps,
        "losses_that_differ": sum(losses[step] != loss for step, loss in made),
        "weights_and_moments_equal": found == wanted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.steps, options.kills)
    for name, value in result.items():
        print(f"{name.replace('_', ' '):<28}{value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
