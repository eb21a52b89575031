"""Settings of a training run, validated by pydantic, and its images."""

from trainables.settings.train import SimCLRSettings, TrainingData, TrainSettings, check_accumulation

__all__ = ["SimCLRSettings", "TrainSettings", "TrainingData", "check_accumulation"]
