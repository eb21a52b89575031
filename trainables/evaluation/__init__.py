"""Evaluates representations: ``reference`` during training, ``probe`` afterwards (imports scikit-learn)."""
