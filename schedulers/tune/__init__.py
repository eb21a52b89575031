"""The races as a Ray Tune scheduler: everything here, and nothing else in ``schedulers``, imports Ray."""
