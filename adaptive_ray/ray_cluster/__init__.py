"""Starts or joins a Ray cluster and places workers on its nodes."""
