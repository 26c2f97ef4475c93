import pytest

from enrollments.exchange.base import make_slug


@pytest.mark.parametrize("course_id", ["MATH-101", "math_101", "2026"])
def test_make_slug_keeps_ids_that_are_slugs_already(course_id: str) -> None:
    assert make_slug(course_id) == course_id.lower()


def test_make_slug_distinguishes_similar_ids() -> None:
    ids = ["Math 101", "Math.101", "Mäth 101", "math-101", "a" * 200, "a " * 100]
    ids += ["课程一四四七三六", "课程一九〇〇八九", "phys!^::`", "phys!&^{'"]
    slugs = {make_slug(course_id) for course_id in ids}
    assert len(slugs) == len(ids)
    assert all(len(slug) <= 200 and slug.isascii() for slug in slugs)


def test_make_slug_ignores_case() -> None:
    slug = "math-101-9f22adf35c2c4dd5ec51b07422fed8a2"
    assert make_slug("MATH 101") == make_slug("Math 101") == slug
