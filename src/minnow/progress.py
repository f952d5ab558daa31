"""Progress of long work on stderr: how much is done, the rate and the time left.

On a terminal every running :func:`track` is one bar, with a table below it where it has numbers to show; elsewhere (a log
file, CI) it is a line every ten seconds.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 10.0
BAR_SECONDS = 0.1
_CURVE_POINTS = 40
_LEVELS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """A length of time in its two largest units, such as ``45 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def quantity(value: float) -> str:
    """A count or a rate with three to four significant digits: ``512``, ``3.42``, ``12.3k``, ``1.20M``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if suffix == "k" else limit)
            return f"{scaled:.2f}{suffix}" if abs(scaled) < 10 else f"{scaled:.1f}{suffix}"
    if value == int(value):
        return str(int(value))
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def size_text(size: float) -> str:
    """Bytes in the unit a person would use: ``812 B``, ``34.5 KiB``, ``1.23 GiB``."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= limit:
            return f"{size / limit:.2f} {unit}" if size < 10 * limit else f"{size / limit:.1f} {unit}"
    return f"{size:.0f} B"


def curve(values: Iterable[float]) -> str:
    """Values as bars of eight heights between their lowest and highest, such as ``█▅▃▂▁``."""
    known = list(values)
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((value - low) * scale)] for value in known)


class Meter:
    """Rate over the last ``window`` seconds, so that a slow start or a pause does not linger in the estimate."""

    def __init__(self, done: float = 0.0, window: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = done
        self._window = window
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque([(clock(), done)])

    def add(self, amount: float) -> None:
        """Count ``amount`` more as done."""
        self.done += amount
        now = self._clock()
        # The sample before the last one inside the window stays: a rate needs two ends.
        while len(self._samples) > 1 and now - self._samples[1][0] > self._window:
            self._samples.popleft()
        if len(self._samples) == 1 or now - self._samples[-1][0] >= self._window / 100:
            self._samples.append((now, self.done))

    def rate(self) -> float | None:
        """Units per second; None before anything was measured."""
        began, done = self._samples[0]
        seconds = self._clock() - began
        return (self.done - done) / seconds if seconds > 0 and self.done > done else None

    def left(self, total: float | None) -> float | None:
        """Seconds until ``total`` at the present rate; None while unknown."""
        rate = self.rate()
        return None if rate is None or total is None else max(0.0, (total - self.done) / rate)


class Progress:
    """One piece of long work; a context manager made by :func:`track`."""

    def __init__(self, total: float | None, label: str, unit: str, done: float = 0.0) -> None:
        self._total = total
        self._label = label
        self._unit = unit
        self._meter = Meter(done)
        self._began = time.monotonic()
        self._shown = self._began
        self._note = ""
        self._numbers: dict[str, str] = {}
        self._curve: deque[float] = deque(maxlen=_CURVE_POINTS)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._began = self._shown = time.monotonic()
        if _on_terminal():
            self._task = _display.open(self._label, self._total, self._meter.done)
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._show()
            _display.close()
        else:
            seconds = time.monotonic() - self._began
            _write_line(f"{self._label}: {self.status()} in {duration(seconds)}")

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more units as done."""
        self._meter.add(amount)
        now = time.monotonic()
        if now - self._shown < (LINE_SECONDS if self._task is None else BAR_SECONDS):
            return
        self._shown = now
        if self._task is None:
            _write_line(f"{self._label}: {self.status()}")
        else:
            self._show()

    def note(self, text: str) -> None:
        """Show ``text`` (such as the loss) behind the numbers from the next update on."""
        self._note = text

    def show(self, numbers: Mapping[str, str], point: float | None = None) -> None:
        """Show named numbers from the next update on, the latest of each name: in the table on a terminal, else behind
        the note.

        Args:
            point: the next of the loss curve that the table ends with.
        """
        self._numbers |= numbers
        if point is not None and math.isfinite(point):
            self._curve.append(point)

    def status(self) -> str:
        """The numbers in words, such as ``120/500 steps, 4.20 steps/s, 1 min 30 s left, loss 2.31``."""
        done = quantity(self._meter.done)
        parts = [f"{done} {self._unit}" if self._total is None else f"{done}/{quantity(self._total)} {self._unit}"]
        rate = self._meter.rate()
        if rate is not None:
            parts.append(f"{quantity(rate)} {self._unit}/s")
        left = self._meter.left(self._total)
        if left:
            parts.append(f"{duration(left)} left")
        parts += [self._note] if self._note else []
        if self._task is None:
            parts += [f"{name} {text}" for name, text in self._numbers.items()]
        return ", ".join(parts)

    def _show(self) -> None:
        if self._task is not None:
            _display.update(self._task, self._meter.done, self.status(), self._numbers, curve(self._curve))


class _Display:
    """The bars on the terminal, shared by nested pieces of work; gone when the outermost ends."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        self._open = 0
        self._tables: dict[TaskID, tuple[Mapping[str, str], str]] = {}

    def open(self, label: str, total: float | None, done: float) -> TaskID:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            tables = self._tables

            class View(RichProgress):
                """The bars, and below them what each has to show."""

                def get_renderables(self) -> Iterator[RenderableType]:
                    yield from super().get_renderables()
                    for numbers, drawn in tables.values():
                        yield _table(numbers, drawn)

            # No refresh thread: two cores have better things to do, and every advance() refreshes anyway.
            self._rich = View(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                console=Console(stderr=True),
                auto_refresh=False,
                redirect_stdout=False,
            )
            self._rich.start()
        self._open += 1
        return self._rich.add_task(label, total=total, completed=int(done), status="")

    def update(self, task: TaskID, done: float, status: str, numbers: Mapping[str, str], drawn: str) -> None:
        if numbers:
            self._tables[task] = numbers, drawn
        if self._rich is not None:
            self._rich.update(task, completed=done, status=status, refresh=True)

    def close(self) -> None:
        self._open -= 1
        if self._open == 0 and self._rich is not None:
            self._rich.stop()
            self._rich = None
            self._tables.clear()

    def say(self, text: str) -> bool:
        if self._rich is None:
            return False
        self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
        return True


def _table(numbers: Mapping[str, str], drawn: str) -> RenderableType:
    """Names and numbers in two columns of pairs, the curve below them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    cells = [Text(cell, style) for name, text in numbers.items() for cell, style in ((f"  {name}", "dim"), (text, ""))]
    for begin in range(0, len(cells), 4):
        grid.add_row(*cells[begin : begin + 4])
    return Group(grid, Text.assemble(("  loss  ", "dim"), drawn)) if drawn else grid


_display = _Display()
_silent = False


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not _silent


def _write_line(text: str) -> None:
    if not _silent:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def track(total: float | None, label: str, unit: str, done: float = 0.0) -> Progress:
    """Show the progress of ``total`` units of work (None: not known) while the context lasts.

    Args:
        unit: what is counted, such as ``"steps"``.
        done: units that were finished before, by an interrupted run; they do not count into the rate.
    """
    return Progress(total, label, unit, done)


def silence() -> None:
    """Show and say nothing from here on; for processes beside the one that speaks."""
    global _silent
    _silent = True


def say(text: str) -> None:
    """One line for the user on stderr, above any bars."""
    if not _display.say(text):
        _write_line(text)
