"""Components of SimCLR: encoder, augmentation, loss, optimizers."""

from trainables.simclr.augment import Augment
from trainables.simclr.encoder import Encoder, SimCLR, build_encoder
from trainables.simclr.losses import LOSSES, ContrastiveLoss
from trainables.simclr.ntxent import dcl, nt_xent
from trainables.simclr.optim import build_optimizer, set_progress

__all__ = [
    "LOSSES",
    "Augment",
    "ContrastiveLoss",
    "Encoder",
    "SimCLR",
    "build_encoder",
    "build_optimizer",
    "dcl",
    "nt_xent",
    "set_progress",
]
