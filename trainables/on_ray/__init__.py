"""Trains with Ray: a Ray Tune trial starts a Ray Train run."""
