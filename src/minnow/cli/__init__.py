"""The ``minnow`` command."""

from minnow.cli.main import main

__all__ = ["main"]
