"""Data: tokenizer and chat format, documents from files, packed rows, and the loader."""

from minnow.data.documents import read_documents
from minnow.data.loader import Batch, Loader
from minnow.data.packing import IGNORED, Packed, pack, tokenize_documents
from minnow.data.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "Loader",
    "Packed",
    "Tokenizer",
    "pack",
    "read_documents",
    "tokenize_documents",
    "train_tokenizer",
]
