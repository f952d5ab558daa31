"""Recipes: a YAML file checked and resolved, its stages run in order into a run folder, and the report on them."""
