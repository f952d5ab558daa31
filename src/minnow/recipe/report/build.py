"""Put the sections together into one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from minnow.files import write_text
from minnow.recipe.report.device import device, lookup, reproduce
from minnow.recipe.report.loops import loops
from minnow.recipe.report.markup import page, raw, tag
from minnow.recipe.report.read import Run, load_run
from minnow.recipe.report.scores import history, scores
from minnow.recipe.report.section import Section
from minnow.recipe.report.style import SCRIPT, STYLE
from minnow.recipe.report.training import headline, loss, parameters

_SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    parameters,
    loss,
    loops,
    scores,
    history,
    lookup,
    device,
    reproduce,
)


def build_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder from the stages that have finished there.

    Args:
        run_folder: a folder written by ``minnow run``; what is read is listed in docs/architecture.md.

    Returns:
        The path of the report. It holds its own style and script and loads nothing.

    Raises:
        UserError: the folder is missing, holds no finished stage, or cannot be read or written.
    """
    page = render(load_run(run_folder))
    path = run_folder / "report.html"
    write_text(path, page)
    return path


def render(run: Run) -> str:
    """The whole page as text."""
    sections = [section for make in _SECTIONS if (section := make(run)) is not None]
    # Only the page's own script may run, and nothing may be fetched, whatever a model managed to write.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    written = [
        tag("section", tag("h2", s.title), tag("p", s.takeaway, class_="takeaway"), s.body, id=s.anchor)
        for s in sections
    ]
    body = tag(
        "body",
        tag("div", headline(run), class_="wrap top"),
        tag(
            "nav",
            tag("div", [tag("a", s.short, href=f"#{s.anchor}") for s in sections], class_="wrap"),
            aria_label="Sections",
        ),
        tag("main", written, class_="wrap"),
        tag("footer", "Made by Minnow. One file; it loads nothing from the network.", class_="wrap"),
        tag("script", raw(SCRIPT)),
    )
    return page(f"{run.name} · Minnow run report", STYLE, body, policy)
