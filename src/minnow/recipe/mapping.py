"""Strict reading of nested mappings (YAML, JSON) into dataclasses: no unknown key, no wrong type, no silent default."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from minnow.errors import UserError

T = TypeVar("T")


def nearest(word: str, valid: Iterable[str]) -> str:
    """Half a sentence for an error: the valid word nearest to ``word``, or all of them when none is near."""
    words = [str(name) for name in valid]
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose from {', '.join(words)}" if words else "none can be given here"


def join(path: str, key: str) -> str:
    """The dotted path of ``key`` below ``path``."""
    return f"{path}.{key}" if path else key


def from_mapping(cls: type[T], mapping: Any, path: str = "") -> T:
    """Build the dataclass ``cls`` from ``mapping``.

    Supports nested dataclasses, list, tuple, dict, Literal, unions with None or other types, Path, str, bool and
    finite numbers (an int where a float is expected, and 1e6 where an int is). A ValueError or UserError raised by
    ``__post_init__`` is reported with the path.

    Args:
        path: dotted path of ``mapping`` in its document, for errors.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing key or a value of the wrong type.
    """
    if not isinstance(mapping, Mapping):
        raise _mismatch("a mapping of keys to values", mapping, path)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise UserError(f"{join(path, str(key))}: unknown key; {nearest(str(key), fields)}")
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = convert(hints[name], mapping[name], join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            expected = "the name of an earlier stage" if field.metadata.get("stage") else describe(hints[name])
            raise UserError(f"{join(path, name)} is missing; it needs {expected}")
    try:
        return cls(**values)
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}" if path else str(error)) from error


def convert(kind: Any, value: Any, path: str) -> Any:
    """``value`` as the annotated type ``kind``; a dataclass that is there already stays.

    Raises:
        UserError: the value does not fit; the sentence names the key, what was expected and the value.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(kind, arguments, value, path)
    if origin is Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value:
                return value
        raise UserError(f"{path}: {value!r} is not allowed; {nearest(str(value), map(str, arguments))}")
    if origin in (list, tuple, dict):
        return _convert_container(kind, value, path)
    if dataclasses.is_dataclass(kind):
        return value if type(value) is kind else from_mapping(kind, value, path)  # type: ignore[arg-type]
    return _convert_plain(kind, value, path)


def _convert_union(kind: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [argument for argument in arguments if argument is not type(None)]
    if len(options) == 1:
        return convert(options[0], value, path)
    # An exact type first, so that 1.0 stays a float in `int | float`.
    for option in sorted(options, key=lambda option: type(value) is not option):
        try:
            return convert(option, value, path)
        except UserError:
            continue
    raise _mismatch(describe(kind), value, path)


def _convert_container(kind: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(describe(kind), value, path)
        return {
            convert(arguments[0], key, join(path, str(key))): convert(arguments[1], item, join(path, str(key)))
            for key, item in value.items()
        }
    if not isinstance(value, list | tuple):
        raise _mismatch(describe(kind), value, path)
    if origin is list or arguments[1:] == (Ellipsis,):
        return origin(convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if len(value) != len(arguments):
        raise _mismatch(describe(kind), value, path)
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(convert(argument, item, f"{path}[{index}]") for index, (argument, item) in pairs)


def _convert_plain(kind: Any, value: Any, path: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number and math.isfinite(value):
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value).expanduser()
    raise _mismatch(describe(kind), value, path)


def _mismatch(expected: str, value: Any, path: str) -> UserError:
    return UserError(f"{path or 'the document'}: expected {expected}, got {value!r}")


def describe(kind: Any) -> str:
    """The annotated type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is dict:
        return f"a mapping to {describe(arguments[1])}"
    if origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return f"a list of {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {', '.join(describe(argument) for argument in arguments)}"
    if dataclasses.is_dataclass(kind):
        return "a mapping of keys to values"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(kind, "nothing" if kind is type(None) else str(kind))


def to_plain(value: Any) -> Any:
    """``value`` with dataclasses as mappings, tuples as lists and paths as text: ready for JSON, equal after reading."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
