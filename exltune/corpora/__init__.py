"""Texts, chats and tokens, cut into samples, and the disjoint token sets that are dealt from them."""

from exltune.corpora.documents import Document, read_texts
from exltune.corpora.sample import Sample
from exltune.corpora.sharp import small_model_documents
from exltune.corpora.sources import read_sources
from exltune.corpora.token_sets import Cuts, TokenSet, make_token_sets
from exltune.corpora.tokenizer import ModelTokenizer, check_same_tokenizer

__all__ = [
    "Cuts",
    "Document",
    "ModelTokenizer",
    "Sample",
    "TokenSet",
    "check_same_tokenizer",
    "make_token_sets",
    "read_sources",
    "read_texts",
    "small_model_documents",
]
