"""Token embeddings to documents."""
