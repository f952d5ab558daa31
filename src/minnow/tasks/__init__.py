"""Tasks: prompts in two splits with verifiers; the pocket world's nine, built-in ones, and the user's own."""

from minnow.tasks.task import Task, drafts_of, drawn_task, file_task, judge
from minnow.tasks.tools import CALCULATOR_SCHEMA, SEARCH_SCHEMA, format_hits
from minnow.tasks.types import Draft, Example, Page, Score, Split
from minnow.tasks.world import TASKS, PocketWorld, verify

__all__ = [
    "CALCULATOR_SCHEMA",
    "SEARCH_SCHEMA",
    "TASKS",
    "Draft",
    "Example",
    "Page",
    "PocketWorld",
    "Score",
    "Split",
    "Task",
    "drafts_of",
    "drawn_task",
    "file_task",
    "format_hits",
    "judge",
    "verify",
]
