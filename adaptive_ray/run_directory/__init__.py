"""The files of one run: reports, events, checkpoints and results."""
