"""Policies that change the batch size within one run."""
