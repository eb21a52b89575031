"""Replays batch-size policies on recorded runs."""
