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
from minnow.device.folder_export import ExportedFolder
from minnow.device.gguf_export import GgufFile
from minnow.device.runtimes import opened
from minnow.errors import UserError
from minnow.model.checkpoint import weight_files
from minnow.model.foreign import quiet_transformers
from minnow.model.language_model import LanguageModel
from minnow.model.tensor_files import stored_tensors
from minnow.progress import track
from minnow.rollout.records import Rollout, Sampling
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
    """Agreement of a file with the float32 reference over all positions of some sequences.

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
        lost: end tokens of the checkpoint that the runtime does not take for one in the file.
    """

    prompts: int
    reference: int
    file: int
    lost: tuple[int, ...]


@dataclass(frozen=True)
class OwnWords:
    """What a checkpoint says, which its files are compared on.

    Attributes:
        sequences: token ids that it wrote at temperature 1, and their ``texts``.
        prompts: how many prompts it was asked to answer greedily; 0 where it was not trained, and ends answers by
            accident.
        ended: those that it ended an answer to, of at most ``room`` tokens.
        stops: its end tokens.
    """

    sequences: list[list[int]]
    texts: list[str]
    prompts: int
    ended: list[list[int]]
    room: int
    stops: list[int]


def own_words(model: LanguageModel, tokenizer: Tokenizer) -> OwnWords:
    """Let a checkpoint write texts, and answer a few prompts."""
    written = _written(model, tokenizer, 16, 96, 0)
    sequences = [rollout.prompt_ids + rollout.token_ids for rollout in written]
    questions = _ASKED if _trained(written, tokenizer.vocab_size) else ()
    prompts = [tokenizer.prompt([{"role": "user", "content": text}]) for text in questions]
    room = min(_LONGEST_ANSWER, model.config.max_positions // 2)
    sampling = Sampling(temperature=0.0, max_new_tokens=room, stop_on_loop=False)
    asked = [(str(i), ids) for i, ids in enumerate(prompts)]
    answers = TorchEngine(model, tokenizer, rows=len(_ASKED)).generate(asked, sampling)
    ended = [prompt for prompt, answer in zip(prompts, answers, strict=True) if answer.finish_reason == "stop"]
    texts = [tokenizer.decode(ids).replace("\0", "") for ids in sequences]  # where onnxruntime-genai ends a text
    return OwnWords(sequences, texts, len(prompts), ended, room, sorted(tokenizer.stop_ids))


def _trained(written: Sequence[Rollout], vocab_size: int) -> bool:
    # Untrained, a model is about as surprised by its own words as a die would be.
    surprise = -np.mean([each for rollout in written for each in rollout.log_probs])
    return bool(surprise < 0.5 * math.log(vocab_size))


def own_sequences(
    model: LanguageModel, tokenizer: Tokenizer, count: int = 16, length: int = 96, seed: int = 0
) -> list[list[int]]:
    """Sequences a model itself writes at temperature 1, from the start of a text: a parity set for any model."""
    written = _written(model, tokenizer, count, length, seed)
    return [rollout.prompt_ids + rollout.token_ids for rollout in written]


def _written(model: LanguageModel, tokenizer: Tokenizer, count: int, length: int, seed: int) -> list[Rollout]:
    sampling = Sampling(temperature=1.0, max_new_tokens=length - 1, seed=seed, stop_on_loop=False)
    start = tokenizer.begin or [tokenizer.eos_id]
    return TorchEngine(model, tokenizer, rows=min(count, 64)).generate(
        [(str(i), start) for i in range(count)], sampling
    )


def check_parity(checkpoint: Path, files: Sequence[Path], sequences: Sequence[Sequence[int]]) -> list[Parity]:
    """Compare files with the checkpoint they came from, in the order of ``files``.

    The reference is transformers' network of the family in float32; llama.cpp keeps a float32 attention cache. Greedy
    tokens are compared teacher-forced, because free-running answers part for good at the first near tie.

    Args:
        sequences: token ids; a sequence of ``n`` gives ``n - 1`` positions.

    Raises:
        UserError: no sequence has two tokens, the checkpoint cannot be read, or as the runtime.
    """
    sequences = [list(ids) for ids in sequences if len(ids) > 1]
    if not sequences:
        raise UserError("parity needs at least one sequence of two tokens; give longer sequences")
    found: list[list[_Compared]] = [[] for _ in files]
    with ExitStack() as stack, track(len(sequences), "verify", "sequence") as bar:
        longest = max(map(len, sequences))
        workers = [stack.enter_context(opened(file, longest)) for file in files]
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


def check_tokenizer(checkpoint: Path, file: Path, texts: Sequence[str] = PROBES) -> TokenizerParity:
    """Compare the ids of each text from the checkpoint's tokenizer and from the file's runtime.

    Raises:
        UserError: the tokenizer cannot be read, or as the runtime.
    """
    tokenizer = Tokenizer.load(checkpoint)
    start = tokenizer.begin if tokenizer.adds_bos else []
    with opened(file, 256) as runtime:
        found = runtime.tokenize(texts)
        expected = [tokenizer.encode(text) if runtime.spells else tokenizer.encode_chat(text) for text in texts]
    differing = tuple(t for t, ids, ours in zip(texts, found, expected, strict=True) if ids != start + ours)
    return TokenizerParity(len(texts), len(texts) - len(differing), differing)


def check_endings(own: OwnWords, files: Sequence[Path]) -> list[Endings]:
    """Let each file answer greedily what the checkpoint ended an answer to.

    Raises:
        UserError: as the runtime.
    """
    found = []
    for file in files:
        with opened(file, max(map(len, own.ended), default=1) + own.room) as runtime:
            marked = [stop for stop, end in zip(own.stops, runtime.ends(own.stops), strict=True) if end]
            answers = runtime.generate(own.ended, own.room, stop=marked) if own.ended else []
        lost = tuple(sorted(set(own.stops) - set(marked)))
        finished = [answer.finish for answer in answers].count("stop")
        found.append(Endings(own.prompts, len(own.ended), finished, lost))
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


def verify_files(checkpoint: Path, files: Sequence[GgufFile | ExportedFolder], own: OwnWords) -> list[Verdict]:
    """Compare files with the checkpoint on what it says itself, and judge them.

    Raises:
        UserError: as the checks.
    """
    paths = [each.file for each in files]
    parities = check_parity(checkpoint, paths, own.sequences)
    endings = check_endings(own, paths) if own.prompts else [None for _ in paths]
    verdicts = []
    for file, parity, ending in zip(files, parities, endings, strict=True):
        tokenizer = check_tokenizer(checkpoint, file.file, [*PROBES, *own.texts])
        verdicts.append(Verdict(parity, tokenizer, ending, tuple(_faults(file.type, parity, tokenizer, ending))))
    return verdicts


# Least agreement (near ties granted) and largest mean KL of a sound file, by its type.
_EXACT, _EIGHT = (0.995, 1e-4), (0.7, 0.1)
_LIMITS = {"F32": _EXACT, "F16": _EXACT, "BF16": (0.9, 0.05)}
_LIMITS |= dict.fromkeys(("Q8_0", "INT8", "Q8", "8da8w"), _EIGHT)
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
        yield f"the runtime does not stop at the end token {endings.lost[0]}"
    if endings is not None and endings.reference and not endings.file:
        yield f"none of its answers ends, where the checkpoint ends {endings.reference} of {endings.prompts}"


def check_memory(checkpoint: Path) -> None:
    """Raise UserError where the free memory does not hold the checkpoint in float32: it is compared in
    it, and the converters of folders read it whole."""
    entries = sum(tensor.entries for tensor in stored_tensors(weight_files(checkpoint)).values())
    needed, free = 4 * entries, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"this holds the checkpoint in float32, which takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
            "free; run it on a larger machine, or write GGUF files with --no-verify"
        )
