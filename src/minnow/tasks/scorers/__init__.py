"""Scores as published, one module each: the definition and its source stand at the top."""
