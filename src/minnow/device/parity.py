"""Does an exported file say what its checkpoint says? Token by token, at the end of answers, and in its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import GgufFile
from minnow.device.llama_cpp import LlamaCpp
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint, weight_files
from minnow.model.foreign import quiet_transformers
from minnow.model.tensor_files import stored_tensors
from minnow.progress import track
from minnow.rollout.records import Sampling
from minnow.rollout.torch_engine import TorchEngine
from minnow.train.memory import free_memory

NEAR_TIE = 1e-3  # nats between the reference's two likeliest tokens

PROBES = (
    "The quick brown fox jumps over the lazy dog. It's 7 o'clock -- isn't it? (yes/no)",
    "  leading   and trailing  \n\n\t tabs \r\n and lines\n",
    "東京は夜の七時。人工智能在边缘设备上运行。서울에서 만나요.",
    "🐟🐠👩‍👩‍👧 ☕️ 🏴‍☠️ → ½ Ⅷ e\u0301 naïve Привет مرحبا नमस्ते",
    "0 1 12 123 1234 12345 3.14159 -1e-9 1,000,000 0x7fff 2026-11-28 ٣٤٥",
    'def f(x: int) -> str:\n\tif x != 0 and x <= 10:\n        return f"{x:>4}\\n"  # {"a": [1, null]}\n',
    "<|im_start|>user\nspelled, not meant<|im_end|></s><eos><end_of_turn>",
)
"""ASCII, white space, CJK, emoji and other scripts, digits, code, and what looks like special tokens."""

_ASKED = ("Hello!", "What is 7 + 5?", "Name three colours.", "Write one sentence about the sea.")
_LONGEST_ANSWER = 192


@dataclass(frozen=True)
class Parity:
    """Agreement of llama.cpp with the float32 reference over all positions of some sequences.

    Attributes:
        agree: positions where both rank the same token first; ``positions`` is how many there are.
        near_ties: disagreements (already counted against ``agree``) where the reference's two likeliest tokens are
            less than :data:`NEAR_TIE` nats apart.
        mean_kl: divergence of the file's distribution from the checkpoint's, in nats, mean over positions.
        max_log_prob_error, mean_log_prob_error: of the sequence's own next token, in nats.
        perplexity, reference_perplexity: of the sequences under the file and under the checkpoint.
    """

    positions: int
    agree: int
    near_ties: int
    mean_kl: float
    max_log_prob_error: float
    mean_log_prob_error: float
    perplexity: float
    reference_perplexity: float

    @property
    def agreement(self) -> float:
        """Share of positions that agree, near ties counted as disagreements."""
        return self.agree / self.positions

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON names them."""
        return asdict(self) | {"agreement": self.agreement}


@dataclass(frozen=True)
class TokenizerParity:
    """How many texts get equal ids; ``differing`` holds those that do not."""

    texts: int
    agree: int
    differing: tuple[str, ...]


@dataclass(frozen=True)
class Endings:
    """Greedy answers that end by themselves.

    Attributes:
        prompts: how many were asked.
        reference: how many the checkpoint ends; the file is asked those.
        file: how many of these the file ends, at a token that it marks as an end itself.
        lost: end tokens of the checkpoint that llama.cpp does not take for one in the file.
    """

    prompts: int
    reference: int
    file: int
    lost: tuple[int, ...]


def check_parity(
    checkpoint: Path, files: Sequence[Path], sequences: Sequence[Sequence[int]], threads: int = 1
) -> list[Parity]:
    """Compare GGUF files with the checkpoint they came from, in the order of ``files``.

    The reference is transformers' network of the family in float32; llama.cpp keeps a float32 attention cache. Greedy
    tokens are compared teacher-forced, because free-running answers part for good at the first near tie.

    Args:
        sequences: token ids; a sequence of ``n`` gives ``n - 1`` positions.

    Raises:
        UserError: no sequence has two tokens, the checkpoint cannot be read, or as :class:`LlamaCpp`.
    """
    sequences = [list(ids) for ids in sequences if len(ids) > 1]
    if not sequences:
        raise UserError("parity needs at least one sequence of two tokens; give longer sequences")
    found: list[list[_Compared]] = [[] for _ in files]
    with ExitStack() as stack, track(len(sequences), "verify", "sequence") as bar:
        longest = max(map(len, sequences))
        workers = [stack.enter_context(LlamaCpp(file, longest, threads, kv="f32")) for file in files]
        for ids, reference in zip(sequences, reference_log_probs(checkpoint, sequences), strict=True):
            for worker, kept in zip(workers, found, strict=True):
                kept.append(_compare(reference, worker.log_probs(ids), ids))
            bar.advance(1)
    return [_summary(kept) for kept in found]


@dataclass(frozen=True)
class _Compared:
    """One sequence, by position."""

    same: np.ndarray
    lead: np.ndarray
    kl: np.ndarray
    reference: np.ndarray
    exported: np.ndarray


def _compare(reference: np.ndarray, exported: np.ndarray, ids: Sequence[int]) -> _Compared:
    places, following = np.arange(len(ids) - 1), np.asarray(ids[1:])
    second, first = np.partition(reference, -2, axis=1)[:, -2:].T
    return _Compared(
        same=reference.argmax(1) == exported.argmax(1),
        lead=first - second,
        kl=(np.exp(reference) * (reference - exported)).sum(1),
        reference=reference[places, following],
        exported=exported[places, following].astype(np.float64),
    )


def _summary(compared: Sequence[_Compared]) -> Parity:
    same, lead, kl, theirs, ours = (
        np.concatenate([getattr(each, name) for each in compared])
        for name in ("same", "lead", "kl", "reference", "exported")
    )
    error = np.abs(theirs - ours)
    return Parity(
        positions=len(same),
        agree=int(same.sum()),
        near_ties=int((~same & (lead < NEAR_TIE)).sum()),
        mean_kl=float(kl.mean()),
        max_log_prob_error=float(error.max()),
        mean_log_prob_error=float(error.mean()),
        perplexity=math.exp(-ours.mean()),
        reference_perplexity=math.exp(-theirs.mean()),
    )


@torch.no_grad()
def reference_log_probs(checkpoint: Path, sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """What transformers' float32 network expects after each position but the last: float64 ``[n - 1, vocab]`` each.

    Raises:
        UserError: transformers cannot read the checkpoint, or an id is outside its vocabulary.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"transformers cannot read {checkpoint} ({error}); restore the checkpoint folder"
            ) from error
    model.eval()
    for ids in sequences:
        if min(ids) < 0 or max(ids) >= model.config.vocab_size:
            raise UserError(f"token ids must lie in 0..{model.config.vocab_size - 1} for {checkpoint}")
        tokens = torch.tensor([list(ids)])
        yield model(tokens[:, :-1], use_cache=False).logits[0].double().log_softmax(-1).numpy()


def own_sequences(checkpoint: Path, count: int = 16, length: int = 96, seed: int = 0) -> list[list[int]]:
    """Sequences the checkpoint itself writes at temperature 1, from the start of a text: a parity set for any model.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    model, tokenizer = load_checkpoint(checkpoint)
    engine = TorchEngine(model, tokenizer, rows=count)
    sampling = Sampling(temperature=1.0, max_new_tokens=length - 1, seed=seed, stop_on_loop=False)
    rollouts = engine.generate([(str(i), tokenizer.begin or [tokenizer.eos_id]) for i in range(count)], sampling)
    return [rollout.prompt_ids + rollout.token_ids for rollout in rollouts]


def check_tokenizer(checkpoint: Path, gguf_file: Path, texts: Sequence[str] = PROBES) -> TokenizerParity:
    """Compare the ids of each text, as plain text, from the checkpoint's tokenizer and from llama.cpp.

    Raises:
        UserError: the tokenizer cannot be read, or as :class:`LlamaCpp`.
    """
    tokenizer = Tokenizer.load(checkpoint)
    start = tokenizer.begin if tokenizer.adds_bos else []
    with LlamaCpp(gguf_file, n_ctx=256) as llama:
        found = llama.tokenize(texts)
    differing = tuple(text for text, ids in zip(texts, found, strict=True) if ids != start + tokenizer.encode(text))
    return TokenizerParity(len(texts), len(texts) - len(differing), differing)


def check_endings(checkpoint: Path, files: Sequence[Path], threads: int = 1) -> list[Endings]:
    """Answer a few prompts greedily, with the checkpoint and then, where it ended by itself, with each file.

    Raises:
        UserError: the checkpoint cannot be read, or as :class:`LlamaCpp`.
    """
    model, tokenizer = load_checkpoint(checkpoint)
    room = min(_LONGEST_ANSWER, model.config.max_positions // 2)
    prompts = [tokenizer.prompt([{"role": "user", "content": text}]) for text in _ASKED]
    sampling = Sampling(temperature=0.0, max_new_tokens=room, stop_on_loop=False)
    asked = [(str(i), ids) for i, ids in enumerate(prompts)]
    answers = TorchEngine(model, tokenizer, rows=len(asked)).generate(asked, sampling)
    ended = [prompt for prompt, answer in zip(prompts, answers, strict=True) if answer.finish_reason == "stop"]
    stops = sorted(tokenizer.stop_ids)
    found = []
    for file in files:
        with LlamaCpp(file, max(map(len, prompts)) + room, threads, kv="f32") as llama:
            marked = [stop for stop, end in zip(stops, llama.ends(stops), strict=True) if end]
            finished = [each.finish for each in llama.generate(ended, room, stop=marked)] if ended else []
        lost = tuple(sorted(set(stops) - set(marked)))
        found.append(Endings(len(prompts), len(ended), finished.count("stop"), lost))
    return found


@dataclass(frozen=True)
class Verdict:
    """All that was found out about one file.

    Attributes:
        endings: None for a checkpoint that was not trained, whose answers end by accident.
        faults: what is not as the checkpoint has it, in words; empty for a sound file.
    """

    parity: Parity
    tokenizer: TokenizerParity
    endings: Endings | None
    faults: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON names them."""
        return self.parity.as_dict() | {
            "tokenizer": {"texts": self.tokenizer.texts, "agree": self.tokenizer.agree},
            "endings": None if self.endings is None else asdict(self.endings),
            "faults": list(self.faults),
            "passed": not self.faults,
        }


def verify_files(checkpoint: Path, files: Sequence[GgufFile], threads: int = 1) -> list[Verdict]:
    """Compare files with the checkpoint on texts that it writes itself, and judge them.

    Raises:
        UserError: not enough memory, or as the checks.
    """
    check_memory(checkpoint)
    paths, words = [each.file for each in files], Tokenizer.load(checkpoint)
    sequences = own_sequences(checkpoint)
    parities = check_parity(checkpoint, paths, sequences, threads)
    texts = [*PROBES, *(words.decode(ids) for ids in sequences)]
    # Untrained, a model is about as surprised by its own words as a die would be.
    trained = parities[0].reference_perplexity < words.vocab_size**0.5
    endings = check_endings(checkpoint, paths, threads) if trained else [None for _ in paths]
    verdicts = []
    for file, parity, ending in zip(files, parities, endings, strict=True):
        tokenizer = check_tokenizer(checkpoint, file.file, texts)
        verdicts.append(Verdict(parity, tokenizer, ending, tuple(_faults(file.type, parity, tokenizer, ending))))
    return verdicts


# Least agreement (near ties granted) and largest mean KL of a sound file, by its type.
_LIMITS = {"F32": (0.995, 1e-4), "F16": (0.995, 1e-4), "BF16": (0.9, 0.05), "Q8_0": (0.7, 0.1)}
_ROUNDED = (0.1, 1.0)  # of fewer bits: what no rounding explains, not even that of random weights


def _faults(kind: str, parity: Parity, tokenizer: TokenizerParity, endings: Endings | None) -> Iterator[str]:
    agreement, kl = _LIMITS.get(kind, _ROUNDED)
    granted = (parity.agree + parity.near_ties) / parity.positions
    if granted < agreement:
        yield f"it ranks another token first at {1 - granted:.1%} of the positions"
    if not parity.mean_kl <= kl:
        yield f"its distributions are {parity.mean_kl:.2g} nats from the checkpoint's, above {kl:g}"
    if tokenizer.differing:
        yield f"its tokenizer cuts {tokenizer.differing[0]!r} elsewhere"
    if endings is not None and endings.lost:
        yield f"llama.cpp does not stop at the end token {endings.lost[0]}"
    if endings is not None and endings.reference and not endings.file:
        yield f"none of its answers ends, where the checkpoint ends {endings.reference} of {endings.prompts}"


def check_memory(checkpoint: Path) -> None:
    """Raise UserError where the free memory does not hold the checkpoint in float32, which it is compared in."""
    entries = sum(tensor.entries for tensor in stored_tensors(weight_files(checkpoint)).values())
    needed, free = 4 * entries, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"verifying holds the checkpoint in float32, which takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} "
            "GB are free; verify on a larger machine, or write the files with --no-verify"
        )
