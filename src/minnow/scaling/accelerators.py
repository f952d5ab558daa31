"""Accelerators that are rented for training: what their makers publish, and what is reached of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One accelerator and its place in the maker's server of eight; bytes and seconds.

    Attributes:
        flops: dense bfloat16 peak per second.
        memory: of one.
        memory_rate: what its memory moves per second.
        link: to the others of its server per second, each way.
        network: to other servers per second, each way; 0 where the maker names none.
        products: share of ``flops`` that large matrix products of the maker's library reach. No data sheet says it:
            about 250 of 312 TFLOP/s on A100 and 640 of 989 on H100 are commonly seen; the newer ones are taken as H100.
    """

    flops: float
    memory: float
    memory_rate: float
    link: float
    network: float
    products: float


GPUS = {
    "A100": Accelerator(312e12, 80e9, 2.039e12, 300e9, 25e9, 0.80),
    "H100": Accelerator(989e12, 80e9, 3.35e12, 450e9, 50e9, 0.65),
    "H200": Accelerator(989e12, 141e9, 4.8e12, 450e9, 50e9, 0.65),
    "B200": Accelerator(2250e12, 180e9, 8e12, 900e9, 50e9, 0.65),
    "L40S": Accelerator(362e12, 48e9, 0.864e12, 32e9, 0, 0.65),
    "RTX4090": Accelerator(165e12, 24e9, 1.008e12, 32e9, 0, 0.65),
}
