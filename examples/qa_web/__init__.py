"""A page that answers questions from documents: `python -m examples.qa_web`."""
