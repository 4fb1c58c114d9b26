"""Vectors of documents in a store on disk, searched with an encoder's vectors.

The store is LanceDB, chosen over three others. It answers from disk, so that memory does not grow with the corpus (ten million vectors of 2,048
numbers are 82 GB), and keeps ids, words and thoughts in the same table. FAISS and usearch are faster where all vectors fit into memory, but know
nothing of a document except its number. DuckDB's vector index is a download at run time, not a package, must fit into memory, and is called
experimental by its makers. Of LanceDB's indexes IVF_SQ is used: made in seconds where HNSW takes minutes, its candidates scored again exactly.
"""

from twn_lightning.index.build import BuildOptions
from twn_lightning.index.hits import Document, Found
from twn_lightning.index.vector_index import VectorIndex

__all__ = ["BuildOptions", "Document", "Found", "VectorIndex"]
