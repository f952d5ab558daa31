"""The part of llama.cpp's C interface that the worker needs, reached with ctypes in the ``xllamacpp`` wheel.

The wheel's Python classes only offer a server, which gives no log-probabilities of prompt tokens; its shared library
exports the whole C interface. Two parameter structs are passed by value, and their layout may change between builds,
so :func:`new_context` sets only fields from the front of ``llama_context_params``, compares the defaults found there
before and asks the context afterwards; a build of another layout is refused with a sentence, never misread.

Import this module only in a worker process: a failed assertion inside llama.cpp ends the process.
"""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import xllamacpp
from xllamacpp import xllamacpp as _extension

_pointer = ctypes.c_void_p
_int = ctypes.c_int32


class _Params(ctypes.Structure):
    """Room for either parameter struct (48 and 168 bytes at present), opaque apart from the offsets below."""

    _fields_ = [("raw", ctypes.c_uint8 * 1024)]


class Batch(ctypes.Structure):
    """``llama_batch``: parallel arrays over the tokens of one ``llama_decode``."""

    _fields_ = [
        ("n_tokens", _int),
        ("token", _pointer),
        ("embd", _pointer),
        ("pos", _pointer),
        ("n_seq_id", _pointer),
        ("seq_id", _pointer),
        ("logits", _pointer),
    ]


class _Candidates(ctypes.Structure):
    """``llama_token_data_array``."""

    _fields_ = [("data", _pointer), ("size", ctypes.c_size_t), ("selected", ctypes.c_int64), ("sorted", ctypes.c_bool)]


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data

# llama_context_params: name -> (offset, struct format, default of this layout)
_CONTEXT_FIELDS = {
    "n_ctx": (0, "I", 512),
    "n_batch": (4, "I", 2048),
    "n_ubatch": (8, "I", 512),
    "n_seq_max": (12, "I", 1),
    "n_outputs_max": (20, "I", 0),
    "n_outputs_max_per_seq": (24, "I", 1),
    "n_threads": (28, "i", 4),
    "n_threads_batch": (32, "i", 4),
    "type_k": (104, "i", 1),
    "type_v": (108, "i", 1),
}
KV_TYPES = {"f32": 0, "f16": 1}


def _declare() -> ctypes.CDLL:
    library = ctypes.CDLL(_extension.__file__)
    signatures: dict[str, tuple[object, list[object]]] = {
        "llama_backend_init": (None, []),
        "llama_print_system_info": (ctypes.c_char_p, []),
        "llama_model_default_params": (_Params, []),
        "llama_model_load_from_file": (_pointer, [ctypes.c_char_p, _Params]),
        "llama_model_get_vocab": (_pointer, [_pointer]),
        "llama_model_n_ctx_train": (_int, [_pointer]),
        "llama_vocab_n_tokens": (_int, [_pointer]),
        "llama_vocab_eos": (_int, [_pointer]),
        "llama_vocab_is_eog": (ctypes.c_bool, [_pointer, _int]),
        "llama_tokenize": (_int, [_pointer, ctypes.c_char_p, _int, _pointer, _int, ctypes.c_bool, ctypes.c_bool]),
        "llama_context_default_params": (_Params, []),
        "llama_init_from_model": (_pointer, [_pointer, _Params]),
        "llama_free": (None, [_pointer]),
        "llama_n_ctx": (ctypes.c_uint32, [_pointer]),
        "llama_n_batch": (ctypes.c_uint32, [_pointer]),
        "llama_n_seq_max": (ctypes.c_uint32, [_pointer]),
        "llama_n_threads": (_int, [_pointer]),
        "llama_n_threads_batch": (_int, [_pointer]),
        "llama_get_memory": (_pointer, [_pointer]),
        "llama_memory_clear": (None, [_pointer, ctypes.c_bool]),
        "llama_memory_seq_rm": (ctypes.c_bool, [_pointer, _int, _int, _int]),
        "llama_decode": (_int, [_pointer, Batch]),
        "llama_get_logits": (_pointer, [_pointer]),
        "llama_sampler_init_grammar": (_pointer, [_pointer, ctypes.c_char_p, ctypes.c_char_p]),
        "llama_sampler_apply": (None, [_pointer, ctypes.POINTER(_Candidates)]),
        "llama_sampler_accept": (None, [_pointer, _int]),
        "llama_sampler_free": (None, [_pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class UnknownLayout(Exception):
    """This build of xllamacpp has another interface than the one written down here."""


class Llama:
    """One loaded file and one context.

    Args:
        n_ctx: positions per sequence.
        sequences: how many sequences are held at once.
        threads: for prefill and decode alike (an unset batch count once made llama.cpp 30 times slower).
        kv: "f16" or "f32" for the attention cache.

    Raises:
        UnknownLayout: the wheel is of another layout.
        ValueError: llama.cpp could not load the file.
    """

    def __init__(self, file: str, n_ctx: int, sequences: int, threads: int, kv: str) -> None:
        try:
            self._library = _declare()
        except AttributeError as error:
            raise UnknownLayout(str(error)) from error
        self._library.llama_backend_init()
        self.model = self._library.llama_model_load_from_file(file.encode(), self._library.llama_model_default_params())
        if not self.model:
            raise ValueError("llama.cpp could not load the file")
        self._vocabulary = self._library.llama_model_get_vocab(self.model)
        self.vocab_size: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        self.eos: int = self._library.llama_vocab_eos(self._vocabulary)
        self.n_batch = min(512, n_ctx * sequences)  # llama.cpp clamps it to the context anyway
        self.sequences, self.n_ctx = sequences, n_ctx
        self._context = self._new_context(threads, kv)
        self._memory = self._library.llama_get_memory(self._context)

    def _new_context(self, threads: int, kv: str) -> int:
        params = self._library.llama_context_default_params()
        for name, (offset, form, default) in _CONTEXT_FIELDS.items():
            (found,) = struct.unpack_from(form, bytes(params.raw), offset)
            if found != default:
                raise UnknownLayout(f"{name} is {found} where {default} was expected")
        wanted = {
            "n_ctx": self.n_ctx * self.sequences,
            "n_batch": self.n_batch,
            "n_ubatch": self.n_batch,
            "n_seq_max": self.sequences,
            "n_outputs_max": self.n_batch,
            "n_outputs_max_per_seq": self.n_batch,
            "n_threads": threads,
            "n_threads_batch": threads,
            "type_k": KV_TYPES[kv],
            "type_v": KV_TYPES[kv],
        }
        for name, value in wanted.items():
            offset, form, _ = _CONTEXT_FIELDS[name]
            struct.pack_into(form, params.raw, offset, value)
        context = self._library.llama_init_from_model(self.model, params)
        if not context:
            raise ValueError("llama.cpp could not make a context (not enough memory for this many positions?)")
        for name in ("n_batch", "n_seq_max", "n_threads", "n_threads_batch"):
            found = getattr(self._library, f"llama_{name}")(context)
            if found != wanted[name]:
                raise UnknownLayout(f"the context reports {name} {found}, {wanted[name]} was set")
        return context

    @property
    def system_info(self) -> str:
        """Instruction sets and options this build uses on this machine."""
        return self._library.llama_print_system_info().decode()

    @property
    def version(self) -> str:
        """The wheel's version (its last part is llama.cpp's build number)."""
        return str(xllamacpp.__version__)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of ``text``, with the BOS the file asks for; special tokens inside are recognised if ``special``."""
        data = text.encode()
        room = len(data) + 8
        ids = np.zeros(room, np.int32)
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids.ctypes.data, room, True, special)
        return ids[:count].tolist()

    def is_end(self, token: int) -> bool:
        """Whether an answer ends at ``token``."""
        return self._library.llama_vocab_is_eog(self._vocabulary, token)

    def clear(self) -> None:
        """Forget every sequence."""
        self._library.llama_memory_clear(self._memory, True)

    def forget(self, sequence: int) -> None:
        """Forget one sequence."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def prefill(self, tokens: np.ndarray, row: int = 0) -> np.ndarray:
        """Run a prompt of any length into one sequence; logits ``[1, vocab_size]`` after its last token."""
        logits = np.empty((0, self.vocab_size), np.float32)
        for start in range(0, len(tokens), self.n_batch):
            span = np.arange(start, min(start + self.n_batch, len(tokens)))
            logits = self.decode(tokens[span], span, np.full(len(span), row), span == len(tokens) - 1)
        return logits

    def decode(self, tokens: np.ndarray, positions: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Run at most ``n_batch`` tokens of any sequences.

        Args:
            tokens, positions, rows: int32 ``[n]``: id, position in its sequence, sequence number.
            wanted: bool ``[n]``: where logits are asked for.

        Returns:
            float32 ``[wanted.sum(), vocab_size]``, valid until the next call (a view of llama.cpp's buffer).

        Raises:
            ValueError: llama.cpp refused the batch.
        """
        count = len(tokens)
        tokens, positions = np.ascontiguousarray(tokens, np.int32), np.ascontiguousarray(positions, np.int32)
        rows, flags = np.ascontiguousarray(rows, np.int32), np.ascontiguousarray(wanted, np.int8)
        ones = np.ones(count, np.int32)
        row_pointers = rows.ctypes.data + 4 * np.arange(count, dtype=np.uint64)
        batch = Batch(
            count,
            tokens.ctypes.data,
            None,
            positions.ctypes.data,
            ones.ctypes.data,
            row_pointers.ctypes.data,
            flags.ctypes.data,
        )
        status = self._library.llama_decode(self._context, batch)
        if status != 0:
            raise ValueError(f"llama_decode returned {status} for {count} tokens")
        outputs = int(np.count_nonzero(wanted))
        if not outputs:
            return np.empty((0, self.vocab_size), np.float32)
        address = self._library.llama_get_logits(self._context)
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (outputs, self.vocab_size))

    def grammar(self, text: str, stops: set[int]) -> Grammar:
        """A grammar of rules ``text`` (GBNF) whose first is ``root``, for an answer that ends at one of ``stops``.

        Raises:
            ValueError: llama.cpp cannot read it.
        """
        sampler = self._library.llama_sampler_init_grammar(self._vocabulary, text.encode(), b"root")
        if not sampler:
            raise ValueError("llama.cpp could not read the grammar")
        # llama.cpp lets any token that may end some answer stand where this one may end.
        others = [token for token in range(self.vocab_size) if self.is_end(token) and token not in stops]
        return Grammar(self._library, sampler, np.array(others, np.int32))


class Grammar:
    """What one answer may go on with; see :meth:`Llama.grammar`."""

    def __init__(self, library: ctypes.CDLL, sampler: int, never: np.ndarray) -> None:
        self._library, self._sampler, self._never = library, sampler, never

    def allows(self, tokens: np.ndarray) -> np.ndarray:
        """Which of the ids ``[n]`` may come next, bool ``[n]``."""
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["id"] = tokens
        self._library.llama_sampler_apply(
            self._sampler, ctypes.byref(_Candidates(candidates.ctypes.data, len(tokens), -1, False))
        )
        return np.isfinite(candidates["logit"]) & ~np.isin(tokens, self._never)

    def take(self, token: int) -> None:
        """Go on by a token that it allows."""
        self._library.llama_sampler_accept(self._sampler, token)

    def __del__(self) -> None:
        self._library.llama_sampler_free(self._sampler)
