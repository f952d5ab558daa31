"""The machine a measurement was taken on, and whether it was idle."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from minnow.machine import machine, usable_cores


def describe_machine() -> dict[str, Any]:
    """:func:`minnow.machine.machine`, with all cores beside the usable ones, and Python's version."""
    cores = {"cores": os.cpu_count(), "usable_cores": usable_cores()}
    return machine() | cores | {"python": platform.python_version()}


def load_average() -> float:
    """Processes that ran or waited to, over the last minute."""
    return os.getloadavg()[0]


def cpu_ticks() -> tuple[int, int] | None:
    """Ticks stolen by the hypervisor and ticks in all, where the system tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(each) for each in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def steal_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Share of the time between two :func:`cpu_ticks` that the hypervisor gave to others."""
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def energy_joules() -> float | None:
    """The package's energy counter (RAPL), where the system has one that may be read."""
    try:
        return int(Path("/sys/class/powercap/intel-rapl:0/energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
