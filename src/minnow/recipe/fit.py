"""What a training stage settles before its first step: rows at once, and whether the model is compiled."""

from __future__ import annotations

from minnow.model.config import ModelConfig
from minnow.progress import quantity, say
from minnow.recipe.vitals import training_flops
from minnow.train.loop import Trainer
from minnow.train.memory import free_memory, plan_micro_batch
from minnow.train.precision import compile_pays, peak_flops

_LIKELY_MFU = 0.35
"""To foretell a training's length on a GPU."""


def fit_machine(name: str, trainer: Trainer, rows: int, length: int) -> None:
    """Before the first step: as many parts to a step of ``rows`` rows as the memory asks for, and the model compiled
    where that pays; says what it chose. An architecture of others has no plan: the loop halves what does not fit."""
    model, device = trainer.model, next(trainer.model.parameters()).device
    if isinstance(model.config, ModelConfig):
        muon = bool(trainer.settings.optimizer.muon)
        rows, length = -(-rows // trainer.ranks.data[1]), length // trainer.ranks.parallel.context
        again = trainer.ranks.parallel.activation_checkpointing
        plan = plan_micro_batch(model.config, rows, length, muon, free_memory(device), device.type, again)
        trainer.limit(trainer.ranks.from_first(plan.rows) * length)  # ranks take their parts together
        sizes = f"{quantity(plan.needed)}B of {quantity(plan.free)}B free"
        doubt = "" if plan.fits else ": it may run out of memory; use shorter rows or a smaller model"
        say(f"{name}: {plan.rows} of a step's {rows} rows at once, about {sizes}{doubt}")
    if device.type != "cpu":
        flops = trainer.settings.steps * rows * length * training_flops(model, length)
        # Kept with the state: compiled or not, the numbers differ in their last bits.
        if trainer.notes.setdefault("compiled", compile_pays(device, flops / (_LIKELY_MFU * peak_flops(device)))):
            say(f"{name}: compiled, which the length of this run pays for")
            model.compile()
