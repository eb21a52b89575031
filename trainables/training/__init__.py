"""The training loop, which knows torch and, if initialised, torch.distributed; it does not know Ray."""
