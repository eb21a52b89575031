"""A training run under Ray: a Ray Tune trial that starts a Ray Train run."""
