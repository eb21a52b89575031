"""SimCLR's parts: encoder, augmentation, loss, optimizers."""

from trainables.simclr.augment import Augment, AugmentSettings
from trainables.simclr.encoder import Encoder, EncoderSettings, SimCLR, build_encoder
from trainables.simclr.losses import LOSSES, ContrastiveLoss
from trainables.simclr.ntxent import dcl, nt_xent
from trainables.simclr.optim import OptimizerSettings, build_optimizer, set_progress

__all__ = [
    "LOSSES",
    "Augment",
    "AugmentSettings",
    "ContrastiveLoss",
    "Encoder",
    "EncoderSettings",
    "OptimizerSettings",
    "SimCLR",
    "build_encoder",
    "build_optimizer",
    "dcl",
    "nt_xent",
    "set_progress",
]
