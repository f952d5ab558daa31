"""A file system of folders and text files in memory."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from minnow.tasks.apis.api import ApiError, Result, required

Folder = dict[str, Any]
"""By name: a text is a file, a folder another of these."""

_NO_NAME = frozenset('|/\\?%*:"><')
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


class FileSystem:
    """The folder one is in is no part of the state that is compared."""

    def __init__(self, config: Result) -> None:
        self.name, top = next(iter(config.get("root", {"/": {"contents": {}}}).items()))
        self.root: Folder = _loaded(top["contents"])
        self._path: list[str] = []

    @property
    def _here(self) -> Folder:
        folder = self.root
        for name in self._path:
            folder = folder[name]
        return folder

    def _file(self, name: str) -> str:
        found = self._here.get(name)
        required(found is not None, f"{name}: no such file")
        required(isinstance(found, str), f"{name} is a directory")
        return str(found)

    def _new(self, name: str) -> str:
        required(name and not _NO_NAME & set(name), f"{name!r} cannot be a name: invalid character")
        required(name not in self._here, f"{name} exists")
        return name

    def _place(self, source: str, destination: str) -> tuple[Folder, str]:
        """The folder and the name that ``source`` is to get."""
        required(source in self._here, f"{source}: no such file or directory")
        required("/" not in destination, f"{destination} is a path; only a name in this directory is supported")
        found = self._here.get(destination)
        required(found is None or isinstance(found, dict), f"{destination} is no directory")
        folder, name = (self._here, destination) if found is None else (found, source)
        required(name not in folder, f"{name} exists there")
        required(folder is not self._here[source], f"{source} cannot go into itself")
        return folder, name

    def pwd(self) -> Result:
        """The path of the current directory."""
        return {"current_working_directory": "/" + "/".join([self.name, *self._path])}

    def ls(self, a: bool = False) -> Result:
        """List the current directory; hidden files too with a."""
        return {"current_directory_content": [name for name in self._here if a or not name.startswith(".")]}

    def cd(self, folder: str) -> Result:
        """Go to a folder in the current directory, or to .. above it."""
        folder = folder.rstrip("/") or "/"
        if folder == "..":
            required(self._path, "this is the root already")
            self._path.pop()
            return {}
        if folder == "/":
            self._path = []
        elif folder != ".":
            required(isinstance(self._here.get(folder), dict), f"cd: {folder}: no such directory")
            self._path.append(folder)
        return {"current_working_directory": self._path[-1] if self._path else self.name}

    def mkdir(self, dir_name: str) -> None:
        """Create a folder in the current directory."""
        self._here[self._new(dir_name)] = {}

    def touch(self, file_name: str) -> None:
        """Create an empty file in the current directory."""
        self._here[self._new(file_name)] = ""

    def echo(self, content: str, file_name: str | None = None) -> Result | None:
        """Write text to a file in the current directory, or show it without one."""
        if not file_name:
            return {"terminal_output": content}
        self._file(file_name)
        self._here[file_name] = str(content)
        return None

    def cat(self, file_name: str) -> Result:
        """Show a file."""
        return {"file_content": self._file(file_name)}

    def find(self, path: str = ".", name: str | None = None) -> Result:
        """Find files and folders whose name contains a text, below a path."""
        folder: Any = self._here
        for part in path.strip("/").split("/"):
            folder = folder if part in ("", ".") else folder.get(part) if isinstance(folder, dict) else None
        required(isinstance(folder, dict), f"find: {path}: no such directory")
        found = _below(folder, path.rstrip("/"))
        return {"matches": [place for place, each in found if name is None or name in each]}

    def wc(self, file_name: str, mode: str = "l") -> Result:
        """Count lines (l), words (w) or characters (c) of a file."""
        text = self._file(file_name)
        counted = {"l": ("lines", text.splitlines()), "w": ("words", text.split()), "c": ("characters", text)}
        required(mode in counted, f"wc: invalid mode {mode!r}")
        kind, parts = counted[mode]
        return {"count": len(parts), "type": kind}

    def sort(self, file_name: str) -> Result:
        """The lines of a file in order."""
        return {"sorted_content": "\n".join(sorted(self._file(file_name).splitlines()))}

    def grep(self, file_name: str, pattern: str) -> Result:
        """The lines of a file that contain a text."""
        return {"matching_lines": [line for line in self._file(file_name).splitlines() if pattern in line]}

    def tail(self, file_name: str, lines: int = 10) -> Result:
        """The last lines of a file."""
        required(lines > 0, "tail: lines must be above 0")
        return {"last_lines": "\n".join(self._file(file_name).splitlines()[-lines:])}

    def diff(self, file_name1: str, file_name2: str) -> Result:
        """The lines in which two files differ."""
        pairs = zip(self._file(file_name1).splitlines(), self._file(file_name2).splitlines(), strict=False)
        return {"diff_lines": "\n".join(f"- {one}\n+ {other}" for one, other in pairs if one != other)}

    def du(self, human_readable: bool = False) -> Result:
        """The size of the current directory."""
        size = float(_size(self._here))
        if not human_readable:
            return {"disk_usage": f"{size:.0f} bytes"}
        unit = 0
        while size >= 1024 and unit < len(_UNITS) - 1:
            size, unit = size / 1024, unit + 1
        return {"disk_usage": f"{size:.2f} {_UNITS[unit]}"}

    def mv(self, source: str, destination: str) -> Result:
        """Move a file or folder into a folder, or give it a new name."""
        folder, name = self._place(source, destination)
        folder[name] = self._here.pop(source)
        return {"result": f"'{source}' moved to '{destination}'"}

    def cp(self, source: str, destination: str) -> Result:
        """Copy a file or folder into a folder, or under a new name."""
        folder, name = self._place(source, destination)
        folder[name] = deepcopy(self._here[source])
        return {"result": f"'{source}' copied to '{destination}'"}

    def rm(self, file_name: str) -> Result:
        """Remove a file or folder."""
        required(file_name in self._here, f"rm: {file_name}: no such file or directory")
        del self._here[file_name]
        return {"result": f"'{file_name}' removed"}

    def rmdir(self, dir_name: str) -> Result:
        """Remove an empty folder."""
        found = self._here.get(dir_name)
        required(isinstance(found, dict), f"rmdir: {dir_name}: no such directory")
        if found:
            raise ApiError(f"rmdir: {dir_name}: directory not empty")
        return self.rm(dir_name)


def _loaded(contents: Result) -> Folder:
    return {
        name: each["content"] if each["type"] == "file" else _loaded(each["contents"])
        for name, each in contents.items()
    }


def _below(folder: Folder, base: str) -> Iterator[tuple[str, str]]:
    """Path and name of everything in a folder."""
    for name, each in folder.items():
        yield f"{base}/{name}", name
        if isinstance(each, dict):
            yield from _below(each, f"{base}/{name}")


def _size(item: str | Folder) -> int:
    return len(item.encode()) if isinstance(item, str) else sum(map(_size, item.values()))
