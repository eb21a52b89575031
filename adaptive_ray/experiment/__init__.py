"""Runs an experiment: race, winner's training, evaluation and results."""
