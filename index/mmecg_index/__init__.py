"""Where vectors and studies are kept: the FAISS index, and the corpus in SQLite that is the system of record."""
