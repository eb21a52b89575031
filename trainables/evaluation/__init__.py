"""How good a representation is: ``reference`` in training, ``probe`` after it (which imports scikit-learn)."""
