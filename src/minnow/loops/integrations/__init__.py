"""Minnow's loop tools in other people's stacks; import the module that you need: ``transformers``, ``trl``, ``lm_eval``."""
