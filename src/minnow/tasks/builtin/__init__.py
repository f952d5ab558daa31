"""Tasks that come with Minnow: from public data in its published form, or drawn from a seed.

``BUILT_IN`` has them by name. A task from data is opened with the file it is to read; nothing is fetched unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minnow.data.table import Faults
from minnow.errors import UserError
from minnow.tasks.builtin import (
    dialogues,
    documents,
    e2e,
    fairytaleqa,
    function_calls,
    ifeval,
    maths,
    scitldr,
    slots,
    squad,
)
from minnow.tasks.task import Follow, Task, Verifier, drawn_task, file_task, register
from minnow.tasks.types import Draft, Split


@dataclass(frozen=True)
class BuiltIn:
    """What a built-in task is made of: ``read`` (drafts of a file) or ``draw`` (one draft), and its verifier.

    Attributes:
        data: where the data is published, for people.
        needs: called before examples are made; raises UserError where an optional library is missing.
        follow: of a conversation.
    """

    verify: Verifier
    max_new_tokens: int
    read: Callable[[Path, Faults], Iterable[Draft]] | None = None
    draw: Callable[[Random, Split], Draft] | None = None
    data: str = ""
    needs: Callable[[], None] = lambda: None
    follow: Follow | None = None


BUILT_IN: dict[str, BuiltIn] = {
    "gsm8k": BuiltIn(maths.score_gsm8k, 400, maths.read_gsm8k, data="hf://datasets/openai/gsm8k"),
    "aqua": BuiltIn(maths.score_aqua, 400, maths.read_aqua, data="github.com/google-deepmind/AQuA"),
    "squad": BuiltIn(squad.score, 48, squad.read, data="hf://datasets/rajpurkar/squad"),
    "squad2": BuiltIn(squad.score_v2, 48, squad.read_v2, data="hf://datasets/rajpurkar/squad_v2"),
    "fairytaleqa": BuiltIn(
        fairytaleqa.score, 64, fairytaleqa.read, data="github.com/uci-soe/FairytaleQAData", needs=fairytaleqa.needs
    ),
    "scitldr": BuiltIn(scitldr.score, 96, scitldr.read, data="hf://datasets/allenai/scitldr", needs=scitldr.needs),
    "e2e": BuiltIn(e2e.score, 160, e2e.read, data="github.com/tuetschek/e2e-cleaning"),
    "sgd-slots": BuiltIn(
        slots.score, 200, slots.read, data="github.com/google-research-datasets/dstc8-schema-guided-dialogue"
    ),
    **{
        name: BuiltIn(documents.score, 400, draw=draw)
        for name, draw in (
            ("invoices", documents.invoice),
            ("receipts", documents.receipt),
            ("case-reports", documents.case_report),
            ("messages", documents.message),
        )
    },
    "bfcl": BuiltIn(
        function_calls.score,
        256,
        function_calls.read,
        data="github.com/ShishirPatil/gorilla (simple, multiple, parallel)",
    ),
    "bfcl-irrelevance": BuiltIn(
        function_calls.score, 256, function_calls.read_irrelevance, data="github.com/ShishirPatil/gorilla (irrelevance)"
    ),
    "function-calls": BuiltIn(function_calls.score, 128, draw=function_calls.draw),
    "bfcl-multi-turn": BuiltIn(
        dialogues.score,
        256,
        dialogues.read,
        data="github.com/ShishirPatil/gorilla (multi_turn_base)",
        follow=dialogues.follow,
    ),
    "file-requests": BuiltIn(dialogues.score, 128, draw=dialogues.draw, follow=dialogues.follow),
    "ifeval": BuiltIn(ifeval.score, 1024, ifeval.read, data="hf://datasets/google/IFEval"),
}
for _name, _parts in BUILT_IN.items():
    register(_name, _parts.verify, built_in=True, follow=_parts.follow)


def built_in(name: str, files: Mapping[Split, Path] | Path, seed: int = 0, faults: Faults | None = None) -> Task:
    """A built-in task; ``files`` (as :func:`file_task` takes them) for those from data, ``seed`` for drawn ones.

    Raises:
        UserError: a file is missing or not wanted, or an optional library is not installed.
    """
    parts = BUILT_IN[name]
    parts.needs()
    if parts.draw is not None:
        if files:
            raise UserError(f"the task {name!r} is drawn from a seed and reads no file; leave the file out")
        return drawn_task(name, parts.draw, parts.verify, seed, parts.max_new_tokens, parts.follow)
    assert parts.read is not None
    if not files:
        raise UserError(f"the task {name!r} needs its data ({parts.data}): name the file, as in {name}=FILE")
    return file_task(name, parts.read, parts.verify, files, parts.max_new_tokens, faults, parts.follow)
