"""Embeddings of captions from the text layers of an output."""
