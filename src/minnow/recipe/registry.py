"""Stage kinds by name: a dataclass of settings, a function that runs them, and the earlier stages it reads."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from minnow.recipe.context import StageContext

S = TypeVar("S")
Needs = Callable[[Any, Sequence[str]], Sequence[str]]

EVERYTHING = ("seed", "data", "model")


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    Attributes:
        settings_class: dataclass that the stage's mapping in the recipe is read into.
        run: does the work; its return value becomes ``result.json``.
        needs: from the settings and the names of all earlier stages, the names of those this stage reads.
        version: raise it when the code's results change, so that finished stages of this kind run again.
        uses: parts of the recipe that the stage reads besides its settings, as dotted names below ``seed``, ``data``
            and ``model``; a change elsewhere in those does not run the stage again.
        publishes: names of the files it writes into the run folder, beside its own.
        together: all ranks take part in it; any other stage the first one does alone while they wait.
    """

    settings_class: type
    run: Callable[[StageContext[Any]], dict[str, Any]]
    needs: Needs
    version: int = 1
    uses: tuple[str, ...] = EVERYTHING
    publishes: tuple[str, ...] = ()
    together: bool = False


STAGES: dict[str, StageKind] = {}


def stage_input(default: Any = dataclasses.MISSING) -> Any:
    """A settings field that holds the name of an earlier stage, a list of such names, or None."""
    return dataclasses.field(default=default, metadata={"stage": True}, kw_only=True)


def named_inputs(settings: Any, earlier: Sequence[str]) -> Sequence[str]:
    """The stages named by the fields of ``settings`` made with :func:`stage_input`, in the order of the fields."""
    names: list[str] = []
    for field in dataclasses.fields(settings):
        if field.metadata.get("stage"):
            value = getattr(settings, field.name)
            names += [] if value is None else [value] if isinstance(value, str) else list(value)
    return list(dict.fromkeys(names))


def every_earlier(settings: Any, earlier: Sequence[str]) -> Sequence[str]:
    """All stages before this one, for a stage such as the report."""
    return earlier


def stage(
    kind: str,
    settings_class: type[S],
    *,
    needs: Needs = named_inputs,
    version: int = 1,
    uses: tuple[str, ...] = EVERYTHING,
    publishes: tuple[str, ...] = (),
    together: bool = False,
) -> Callable[[Callable[[StageContext[S]], dict[str, Any]]], Callable[[StageContext[S]], dict[str, Any]]]:
    """Register the decorated function as the stage kind ``kind``; see :class:`StageKind`.

    Raises:
        ValueError: the kind exists already.
    """
    if kind in STAGES:
        raise ValueError(f"stage kind {kind!r} is registered twice")

    def register(run: Callable[[StageContext[S]], dict[str, Any]]) -> Callable[[StageContext[S]], dict[str, Any]]:
        STAGES[kind] = StageKind(settings_class, run, needs, version, uses, publishes, together)
        return run

    return register


def stage_kinds() -> Mapping[str, StageKind]:
    """All stage kinds, Minnow's own included."""
    importlib.import_module("minnow.recipe.stages")
    return STAGES
