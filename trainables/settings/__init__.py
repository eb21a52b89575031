"""Settings of a training run and of all its parts: pydantic models that load neither torch nor Ray."""

from trainables.settings.accumulation import InformationSettings, check_accumulation
from trainables.settings.augment import PROFILES, AugmentSettings
from trainables.settings.base import Settings
from trainables.settings.candidate import CandidateSettings
from trainables.settings.encoder import EncoderSettings
from trainables.settings.optimizer import OptimizerSettings
from trainables.settings.sample_weights import Schedule, WeightSettings, unweighted
from trainables.settings.swap import DeviationSettings, SwapSettings
from trainables.settings.train import SimCLRSettings, TrainSettings

__all__ = [
    "PROFILES",
    "AugmentSettings",
    "CandidateSettings",
    "DeviationSettings",
    "EncoderSettings",
    "InformationSettings",
    "OptimizerSettings",
    "Schedule",
    "Settings",
    "SimCLRSettings",
    "SwapSettings",
    "TrainSettings",
    "WeightSettings",
    "check_accumulation",
    "unweighted",
]
