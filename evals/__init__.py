"""Scores of retrieval systems on Japanese sets: datasets -> systems -> metrics -> reports, wired in run."""
