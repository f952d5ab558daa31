"""The pocket world: seeded tasks with disjoint splits and exact verifiers."""

from minnow.tasks.tools import CALCULATOR_SCHEMA, SEARCH_SCHEMA, format_hits, verify_call
from minnow.tasks.types import Example, Page, Score, Split
from minnow.tasks.world import TASKS, PocketWorld, verify

__all__ = [
    "CALCULATOR_SCHEMA",
    "SEARCH_SCHEMA",
    "TASKS",
    "Example",
    "Page",
    "PocketWorld",
    "Score",
    "Split",
    "format_hits",
    "verify",
    "verify_call",
]
