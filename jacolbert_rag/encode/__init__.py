"""Text to token embeddings."""
