"""The one exception that reaches a user as a sentence instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or a full machine: one clear sentence that names the thing and the remedy.

    The command line prints it and exits with code 2. Raise it only after whatever was being
    written has been left whole (see :mod:`minnow.files`).
    """
