"""Rollouts: prompts in, answers with provenance out."""

from minnow.rollout.guard import Guard
from minnow.rollout.records import Engine, Prompt, Rollout, Sampling
from minnow.rollout.torch_engine import TorchEngine

__all__ = ["Engine", "Guard", "Prompt", "Rollout", "Sampling", "TorchEngine"]
