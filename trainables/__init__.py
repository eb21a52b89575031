"""How one candidate trains: SimCLR's parts, batches, evaluation, the loop, and its hosts in Ray Train and Ray Tune."""
