import pytest

from schedulers import Candidate


def test_is_known_by_its_batch_size() -> None:
    assert Candidate(128).key == "128"
    assert Candidate(128) == Candidate(128) != Candidate(64)


def test_accumulation_is_part_of_the_name_where_there_is_any() -> None:
    assert [Candidate(128).key, Candidate(128, 1).key, Candidate(128, 4).key] == ["128", "128", "128x4"]
    assert Candidate(128, 4) != Candidate(512)
    assert Candidate(128, 4).images_per_update == Candidate(512).images_per_update == 512
    assert sorted([Candidate(64, 4), Candidate(128), Candidate(64)]) == [
        Candidate(64),
        Candidate(64, 4),
        Candidate(128),
    ]


@pytest.mark.parametrize("candidate", [Candidate(128), Candidate(64, 4)])
def test_its_name_says_all_about_it(candidate: Candidate) -> None:
    assert Candidate.of_key(candidate.key) == candidate


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True])
def test_refuses_what_is_no_count(count: object) -> None:
    with pytest.raises(ValueError, match=f"accumulation .?{count}"):
        Candidate(64, count)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 0, -4, 2.5, "64", True])
def test_refuses_what_is_no_batch_and_names_it(size: object) -> None:
    with pytest.raises(ValueError, match=str(size)):
        Candidate(size)  # type: ignore[arg-type]
