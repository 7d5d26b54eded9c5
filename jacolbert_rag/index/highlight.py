def highlight(*a, **k):
    raise NotImplementedError
