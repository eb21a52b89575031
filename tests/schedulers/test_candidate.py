import pytest

from schedulers import Candidate


def test_is_known_by_its_batch_size() -> None:
    assert Candidate(128).key == "128"
    assert Candidate(128) == Candidate(128) != Candidate(64)


@pytest.mark.parametrize("size", [1, 0, -4, 2.5, "64", True])
def test_refuses_what_is_no_batch_and_names_it(size: object) -> None:
    with pytest.raises(ValueError, match=str(size)):
        Candidate(size)  # type: ignore[arg-type]
