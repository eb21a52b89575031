import pytest

from schedulers import Candidate


def test_equality_is_by_value() -> None:
    assert Candidate(128) == Candidate(128, 1) != Candidate(64)
    assert Candidate(128, 4) != Candidate(512)
    assert Candidate(128, 4).images_per_update == Candidate(512).images_per_update == 512


def test_key_includes_accumulation_above_one() -> None:
    assert [Candidate(128).key, Candidate(128, 4).key, f"{Candidate(128, 4)}"] == ["128", "128x4", "128x4"]


def test_sorts_by_batch_size_then_accumulation() -> None:
    assert list(map(str, sorted([Candidate(64, 4), Candidate(128), Candidate(64)]))) == ["64", "64x4", "128"]


@pytest.mark.parametrize("candidate", [Candidate(128), Candidate(64, 4)])
def test_parse_reverses_str(candidate: Candidate) -> None:
    assert Candidate.parse(str(candidate)) == candidate


@pytest.mark.parametrize("key", ["", "x4", "64x", "64x4x2", "64 x 4", "-64", "6e1", "large", "None"])
def test_parse_rejects_malformed_keys(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' is not a candidate: write a batch size"):
        Candidate.parse(key)


def test_from_dict_ignores_other_entries() -> None:
    assert Candidate.from_dict({"batch_size": 64, "accumulation": 4, "samples_seen": 1}) == Candidate(64, 4)
    assert Candidate.from_dict({"batch_size": 64}) == Candidate(64)


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True])
def test_rejects_invalid_accumulation(count: object) -> None:
    with pytest.raises(ValueError, match=f"accumulation .?{count}"):
        Candidate(64, count)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 0, -4, 2.5, "64", True])
def test_rejects_invalid_batch_size(size: object) -> None:
    with pytest.raises(ValueError, match=str(size)):
        Candidate(size)  # type: ignore[arg-type]
