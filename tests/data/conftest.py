from __future__ import annotations

import random

import pytest

from minnow.data import Tokenizer, train_tokenizer


def sample_texts() -> list[str]:
    source = random.Random(7)
    words = ["".join(source.choice("abcdefgh") for _ in range(source.randint(1, 7))) for _ in range(300)]
    lines = [" ".join(source.choice([*words, "12", "1212", "x=34"]) for _ in range(40)) for _ in range(200)]
    extra = [
        "It's the naïve café, isn't it? 12345678901234567890 12 12 12",
        "def f(x):\n    return [x]\n\n\n" * 20,
        "دو ۱۲ سه 日本語 Ж " * 20,
        '{"role": "user"} List of tools: [] search(query="abc")' * 10,
    ]
    return lines + extra


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return sample_texts()


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 900)
