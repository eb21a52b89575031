"""Evaluates representations: ``reference`` and ``monitor`` during training, ``probe`` afterwards."""
