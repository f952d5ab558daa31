"""Checkpoints on the Hugging Face hub, fetched only where the user names one."""

from __future__ import annotations

from pathlib import Path

from minnow.errors import UserError

PREFIX = "hf://"
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt")


def fetch(source: str) -> Path:
    """The folder that ``source`` means: a path, or ``hf://OWNER/NAME`` (``@REVISION`` may follow), which is downloaded
    into the hub's own cache unless it is there. Pickled weights and code are left where they are.

    Raises:
        UserError: there is no such folder, or the hub does not give it.
    """
    if not source.startswith(PREFIX):
        if not Path(source).is_dir():
            raise UserError(
                f"there is no checkpoint folder {source}; check the path, or write {PREFIX}OWNER/NAME for the hub"
            )
        return Path(source)
    name, _, revision = source.removeprefix(PREFIX).partition("@")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except Exception as error:  # no network, no such name, no rights, a full disk: each its own class
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the hub does not give {name} ({reason}); check the name, the network and your rights"
        ) from error
