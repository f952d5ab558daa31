"""What llama.cpp's slots have read of conversations, kept on disk: a server that starts again need not read it again."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx2 as httpx

from minnow.errors import UserError
from minnow.files import seal, sealed, whole_file
from minnow.progress import say


class Sessions:
    """A file for each slot of a server, with the state that its latest answer left.

    They lie in a folder of the model's own, since the states of one model are nonsense to another, and hold what was said:
    only their owner may look into it.

    Args:
        folder: of all models' folders.
        model: the GGUF file that is served.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        with model.open("rb") as file:
            self.folder = folder.resolve() / hashlib.file_digest(file, "sha256").hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror}); name another with --sessions") from error
        for begun in self.folder.glob(".*.tmp"):  # by a server that was killed
            begun.unlink()
        self._changed: set[int] = set()
        self._keeping: asyncio.Task[None] | None = None

    def restore(self, url: str, slots: int) -> bool:
        """Give the slots of the server at ``url`` their states; False where it died of one, which is gone then.

        A file that is damaged, or of another llama.cpp or context, goes too.
        """
        for slot in range(slots):
            file = self._file(slot)
            if not file.exists():
                continue
            try:
                if sealed(file) and _ask(url, slot, "restore", file).status_code == 200:
                    continue
                died = False
            except httpx.HTTPError:
                died = True
            say(f"{file} is of no use to llama.cpp and was removed; its conversation will be read once more")
            file.unlink()
            if died:
                return False
        return True

    def changed(self, slot: int, url: str) -> None:
        """Write a slot's state beside all else; states that change meanwhile follow."""
        self._changed.add(slot)
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(url))

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._keeping is not None:
            await self._keeping

    async def _keep(self, url: str) -> None:
        while self._changed:
            await asyncio.to_thread(self._write, self._changed.pop(), url)

    def _write(self, slot: int, url: str) -> None:
        try:
            with whole_file(self._file(slot)) as temporary:
                if (reply := _ask(url, slot, "save", temporary)).status_code != 200:
                    raise OSError(reply.text)
                seal(temporary)
        except UserError as error:
            say(str(error))
        except httpx.HTTPError:
            pass  # the server has gone, and what it held with it

    def _file(self, slot: int) -> Path:
        return self.folder / f"{slot}.state"


def _ask(url: str, slot: int, action: str, file: Path) -> httpx.Response:
    with httpx.Client(timeout=None, trust_env=False) as client:
        return client.post(f"{url}/slots/{slot}?action={action}", json={"filename": file.name})
