"""Evaluates representations: ``reference`` and ``online`` during training, the others afterwards."""
