from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.trainables.workers import Workers

# Slow machines must not fail tests.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Yields processes that run a function as the workers of one torch.distributed group."""
    pool = Workers(tmp_path_factory.mktemp("workers"))
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread: on a busy machine, threads make small networks a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
