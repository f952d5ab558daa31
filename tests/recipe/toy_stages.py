"""Stage kinds that take milliseconds, and a `minnow` command line over them: python toy_stages.py run RECIPE ..."""

from __future__ import annotations

import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minnow.files import whole_file
from minnow.recipe.context import StageContext
from minnow.recipe.registry import every_earlier, stage, stage_input

if __name__ == "__main__":
    # The real stages and the real plan import torch, which these do without.
    sys.modules["minnow.recipe.stages"] = types.ModuleType("minnow.recipe.stages")
    sys.modules["minnow.recipe.plan"] = plan = types.ModuleType("minnow.recipe.plan")
    plan.plan = lambda recipe: {"name": recipe.name}  # type: ignore[attr-defined]
    sys.modules["minnow.cli.plan_text"] = text = types.ModuleType("minnow.cli.plan_text")
    text.plan_text = lambda numbers: f"the plan of {numbers['name']}"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class CountSettings:
    steps: int = 5
    seconds_per_step: float = 0.0
    rate: float = 1e-3


@stage("count", CountSettings)
def count(context: StageContext[CountSettings]) -> dict[str, Any]:
    """Count to ``steps`` with a checkpoint after every second step."""
    saved = context.state / "step"
    first = int(saved.read_text()) if saved.exists() else 0
    context.metrics.rewind(first)
    for step in range(first + 1, context.settings.steps + 1):
        context.record(step=step, loss=1.0 / step)
        if step % 2 == 0:
            with whole_file(saved) as temporary:
                temporary.write_text(str(step))
        time.sleep(context.settings.seconds_per_step)
    (context.folder / "count.txt").write_text(str(context.settings.steps))
    return {"count": context.settings.steps, "resumed_at": first}


@dataclass(frozen=True)
class DoubleSettings:
    source: str = stage_input("count")
    factor: int = 2


@stage("double", DoubleSettings, uses=("seed", "data"))
def double(context: StageContext[DoubleSettings]) -> dict[str, Any]:
    value = int(context.output(context.settings.source, "count.txt").read_text()) * context.settings.factor
    (context.folder / "count.txt").write_text(str(value))
    return {"count": value, "seed": context.seed}


@dataclass(frozen=True)
class ReportSettings:
    title: str = "toys"


@stage("report", ReportSettings, needs=every_earlier, uses=())
def report(context: StageContext[ReportSettings]) -> dict[str, Any]:
    lines = [f"{name}: {(folder / 'result.json').read_text()}" for name, folder in context.inputs.items()]
    (context.run_folder / "report.html").write_text("\n".join([context.settings.title, *lines]))
    return {"stages": list(context.inputs)}


@dataclass(frozen=True)
class SwallowSettings:
    seconds: float = 30.0


@stage("swallow", SwallowSettings)
def swallow(context: StageContext[SwallowSettings]) -> dict[str, Any]:
    """A stage that takes Ctrl-C for its own and returns early."""
    try:
        (context.state / "started").write_text("")
        time.sleep(context.settings.seconds)
    except KeyboardInterrupt:
        return {"whole": False}
    return {"whole": True}


@dataclass(frozen=True)
class FailSettings:
    message: str = "no"


@stage("fail", FailSettings)
def fail(context: StageContext[FailSettings]) -> dict[str, Any]:
    Path(context.folder / "half.txt").write_text("half")
    raise RuntimeError(context.settings.message)


if __name__ == "__main__":
    from minnow.cli import main

    sys.exit(main())
