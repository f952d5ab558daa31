"""The run folder: what a finished stage was made from, whether that still holds, and the lock.

``runs/<name>/<stage>/`` holds ``config.json``, ``inputs.json``, the outputs, ``result.json`` and, last of all,
``done.json``. A stage is finished when ``done.json`` carries the hash of what the recipe asks for now and its outputs
are still the ones that were written.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minnow.data.corpus import MANIFEST
from minnow.data.store import expand, is_url
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json
from minnow.recipe.mapping import to_plain
from minnow.recipe.registry import StageKind
from minnow.recipe.schema import Recipe, StageSpec

_NOT_OUTPUTS = {"config.json", "inputs.json", "done.json"}
_RUN_FILES = ("recipe.json", "summary.json", "report.html")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _hash_file(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _digest([[str(file.relative_to(path)), hash_file(file)] for file in files])
    stat = path.stat()
    return _hash_file(path, stat.st_size, stat.st_mtime_ns)


def hash_source(path: str) -> str | None:
    """SHA-256 of what a source of text holds; None for a URL, which is known by its address."""
    if is_url(path):
        return None
    manifest = Path(path) / MANIFEST
    if manifest.is_file():  # names the checksums of all shards
        return hash_file(manifest)
    files = [hash_file(Path(file)) for file in expand(path)]
    return files[0] if len(files) == 1 else _digest(files)


def _without(mapping: Mapping[str, Any], dotted: Collection[str], path: str = "") -> dict[str, Any]:
    """A copy of nested mappings without the keys that ``dotted`` names."""
    return {
        key: _without(value, dotted, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in mapping.items()
        if f"{path}{key}" not in dotted
    }


def stage_seed(recipe_seed: int, stage: str) -> int:
    """A seed for one stage, below 2**31: other stages and other recipe seeds get unrelated ones."""
    return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{stage}".encode()).digest()[:4], "big") >> 1


def stage_inputs(
    recipe: Recipe, spec: StageSpec, kind: StageKind, finished: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All that decides a stage's outputs, and its ``hash``: the content of ``inputs.json``.

    Args:
        finished: the ``done.json`` of each stage that this one reads, by name.
    """
    whole = {
        "seed": recipe.seed,
        "data": to_plain(recipe.data),
        "model": to_plain(recipe.model),
        "checkpoint": recipe.checkpoint,
    }
    used: dict[str, Any] = {}
    for part in kind.uses:
        top, _, below = part.partition(".")
        used[part] = (whole[top] or {}).get(below) if below else whole[top]
    files: dict[str, str] = {}
    if "data" in used:
        # What files hold counts, not where they lie.
        contents = {key: hash_source(path) for key, path in recipe.data.paths().items()}
        files = {key: content for key, content in contents.items() if content is not None}
        used["data"] = _without(used["data"], {key.removeprefix("data.") for key in files})
    if recipe.data.kind == "prompts" and "data" in used:
        from minnow.recipe.stages.prompts import own_prompts

        files["data.prompts"] = own_prompts(recipe).digest
        used["data"] = {key: value for key, value in used["data"].items() if key not in ("prompts", "count")}
    if "checkpoint" in used and Path(str(recipe.checkpoint)).is_dir():
        files["checkpoint"] = hash_file(Path(str(used.pop("checkpoint"))))
    for name, value in vars(spec.settings).items():
        if isinstance(value, Path) and value.exists():
            files[name] = hash_file(value)
    if hasattr(spec.settings, "contents"):
        files |= spec.settings.contents(recipe)
    inputs = {name: {"hash": done["hash"], "outputs": done["outputs"]["digest"]} for name, done in finished.items()}
    identity = {
        "stage": spec.name,
        "kind": spec.kind,
        "version": kind.version,
        "settings": to_plain(spec.settings),
        "recipe": used,
        "files": files,
        "inputs": inputs,
    }
    return {"hash": _digest(identity), **identity}


def list_outputs(folder: Path, published: Sequence[str] = ()) -> dict[str, Any]:
    """The output files of a stage, by path relative to ``folder``, and one digest over all of them.

    Args:
        published: names of further ones, in the folder above.
    """
    files: dict[str, dict[str, Any]] = {}
    own = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    own = [name for name in own if str(name) not in _NOT_OUTPUTS and name.parts[0] != "state"]
    for name in [*own, *(Path("..", name) for name in published)]:
        path = folder / name
        stat = path.stat()
        files[str(name)] = {"bytes": stat.st_size, "modified": stat.st_mtime_ns, "sha256": hash_file(path)}
    return {"digest": _digest([[name, file["sha256"]] for name, file in files.items()]), "files": files}


def missing_output(folder: Path, done: Mapping[str, Any]) -> str | None:
    """The first output of a finished stage that is gone or has other content; None when all are as written."""
    for name, file in done["outputs"]["files"].items():
        path = folder / name
        if not path.is_file():
            return name
        stat = path.stat()
        same_stamp = stat.st_size == file["bytes"] and stat.st_mtime_ns == file["modified"]
        if not same_stamp and (stat.st_size != file["bytes"] or hash_file(path) != file["sha256"]):
            return name
    return None


def read_record(path: Path) -> dict[str, Any] | None:
    """A stage's ``inputs.json`` or ``done.json``; None when it is not there."""
    return read_json(path) if path.exists() else None


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of what differs between two ``inputs.json``, the hash left out."""
    before, after = _flat(old), _flat(new)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key) and key != "hash")


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flat(item, f"{path}.{key}" if path else key).items()
    }


def start_afresh(folder: Path, inputs: Mapping[str, Any], kind: str, settings: Any) -> None:
    """Replace a stage's folder by a new one that holds only ``config.json`` and ``inputs.json``.

    Raises:
        UserError: the folder is not one that a stage wrote, so it is left alone.
    """
    if folder.exists() and not (folder / "inputs.json").exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files that no stage wrote; move them away or choose another folder with --run-folder"
        )
    with whole_folder(folder) as fresh:
        write_json(fresh / "config.json", {"kind": kind, **to_plain(settings)})
        write_json(fresh / "inputs.json", inputs)


def forget(folder: Path) -> None:
    """Make a stage unfinished, so that it starts afresh; its files stay until then."""
    if (folder / "inputs.json").exists():
        (folder / "done.json").unlink(missing_ok=True)
        write_json(folder / "inputs.json", {"hash": None})


def sweep(run_folder: Path, stages: Mapping[str, Any]) -> None:
    """Remove the temporary files and folders that a killed run left behind."""
    leftovers: list[Path] = []
    for ending in ("????????.tmp", "????????.old"):
        for name in (*stages, *_RUN_FILES):
            leftovers += run_folder.glob(f".{name}.{ending}")
        for name in stages:
            leftovers += (run_folder / name).rglob(f".*.{ending}")
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Hold the run folder, making it if need be; the lock ends with the process, however it ends.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write in {run_folder} ({error.strerror}); choose another with --run-folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{run_folder} is in use by process {holder}; wait for it, stop it, or choose another --run-folder"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
