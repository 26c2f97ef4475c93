import pytest

from enrollments.exchange.base import make_slug


@pytest.mark.parametrize("course_id", ["MATH-101", "math_101", "2026"])
def test_make_slug_keeps_ids_that_are_slugs_already(course_id: str) -> None:
    assert make_slug(course_id) == course_id.lower()


def test_make_slug_distinguishes_similar_ids() -> None:
    ids = ["Math 101", "Math.101", "Mäth 101", "math-101", "数学", "物理", "a" * 200, "a " * 100]
    slugs = {make_slug(course_id) for course_id in ids}
    assert len(slugs) == len(ids)
    assert all(len(slug) <= 200 and slug.isascii() for slug in slugs)


def test_make_slug_ignores_case() -> None:
    assert make_slug("MATH 101") == make_slug("Math 101") == "math-101-9f22adf3"


@pytest.mark.parametrize("course_id", ["", "a" * 201, "a\0", "a\n"])
def test_make_slug_rejects_invalid_ids(course_id: str) -> None:
    with pytest.raises(ValueError, match="is not a course ID: use 1 to 200 printable characters"):
        make_slug(course_id)
