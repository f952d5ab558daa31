"""The one exception that reaches a user as a sentence instead of a traceback."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """Bad input or a full machine: one clear sentence that names the thing and the remedy.

    The command line prints it and exits with code 2. Raise it only after whatever was being
    written has been left whole (see :mod:`minnow.files`).
    """


def require(package: str, extra: str) -> None:
    """Raise UserError where ``package``, which Minnow's ``extra`` brings, is not installed; imports nothing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f'the "{package}" package is not installed; run: pip install "minnow[{extra}]"')
