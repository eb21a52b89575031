"""Loads data sets and splits them into training, reference and test images."""
