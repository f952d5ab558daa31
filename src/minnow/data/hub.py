"""Files of data sets on the Hugging Face hub, fetched only where one is named."""

from __future__ import annotations

from pathlib import Path

from minnow.errors import UserError

PREFIX = "hf://datasets/"


def local_file(name: str) -> Path:
    """The path that ``name`` means: itself, or the cached copy of ``hf://datasets/OWNER/NAME/PATH``.

    Raises:
        UserError: the hub has no such file, or cannot be reached.
    """
    if not name.startswith(PREFIX):
        return Path(name)
    owner, _, rest = name.removeprefix(PREFIX).partition("/")
    dataset, _, path = rest.partition("/")
    if not path:
        raise UserError(f"{name} names no file; write {PREFIX}OWNER/NAME/PATH")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{dataset}", path, repo_type="dataset"))
    except Exception as error:  # a dozen kinds, from a missing file to a missing network
        said = str(error).strip().splitlines()
        raise UserError(
            f"{name} cannot be fetched ({said[0] if said else type(error).__name__}); check the name and the network, or "
            "download the file and name it"
        ) from error
