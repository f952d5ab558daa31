"""Data: tokenizer and chat format, documents from files, packed rows, and the loader."""

from minnow.data.documents import read_documents
from minnow.data.loader import Loader, Source
from minnow.data.packing import Packed, pack, tokenize_documents
from minnow.data.rows import IGNORED, Batch, Rows
from minnow.data.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "Loader",
    "Packed",
    "Rows",
    "Source",
    "Tokenizer",
    "pack",
    "read_documents",
    "tokenize_documents",
    "train_tokenizer",
]
