"""Data: tokenizer and chat format, documents from files, tokenised corpora, packed rows, and the loader."""

from minnow.data.corpus import Corpus
from minnow.data.corpus_rows import CorpusRows
from minnow.data.documents import read_documents
from minnow.data.loader import Loader, Source
from minnow.data.packing import Packed, pack
from minnow.data.rows import IGNORED, Batch, Rows
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.data.tokenizing import tokenize_corpus, tokenize_documents

__all__ = [
    "IGNORED",
    "Batch",
    "Corpus",
    "CorpusRows",
    "Loader",
    "Packed",
    "Rows",
    "Source",
    "Tokenizer",
    "pack",
    "read_documents",
    "tokenize_corpus",
    "tokenize_documents",
    "train_tokenizer",
]
