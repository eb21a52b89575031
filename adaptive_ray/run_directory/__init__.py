"""Files of a run: reports, events, checkpoints and results."""
