"""Configuration of an experiment and its plan."""
