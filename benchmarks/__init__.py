"""Speed and memory of the encoder, beside its peers."""
