"""Texts, cut into documents, and the disjoint token sets that are dealt from them."""

from exltune.corpora.documents import Document, read_texts
from exltune.corpora.sharp import small_model_documents
from exltune.corpora.token_sets import TokenSet, make_token_sets

__all__ = ["Document", "TokenSet", "make_token_sets", "read_texts", "small_model_documents"]
