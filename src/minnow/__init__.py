"""Minnow trains small language models for the edge: design, pre-train, heal, export, serve."""
