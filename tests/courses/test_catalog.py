import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from courses.catalog import InvalidCursor, Order, catalog_page
from courses.models import Course, Subject
from enrollments.services import enroll, enroll_many
from tests.support.counts import drift_by_title
from tests.support.pages import displayed_counts, visible_text

Make = Callable[..., Any]


def slugs(**arguments: Any) -> list[str]:
    return [course.slug for course in catalog_page(**arguments).courses]


def read_all_pages(**arguments: Any) -> tuple[list[str], list[str]]:
    """Return the slugs of all pages read forward, and of all pages read backward."""
    page = catalog_page(**arguments)
    assert page.before == ""
    forward = [course.slug for course in page.courses]
    while page.after:
        page = catalog_page(**arguments, after=page.after)
        forward += [course.slug for course in page.courses]
    backward = [course.slug for course in page.courses]
    while page.before:
        page = catalog_page(**arguments, before=page.before)
        backward = [course.slug for course in page.courses] + backward
    return forward, backward


@pytest.fixture
def courses_with_ties(make_course: Make) -> list[Course]:
    """Return courses of which some have equal titles and some have equal counts."""
    courses = [make_course(title=title, slug=f"c{n}") for n, title in enumerate("BAABBA")]
    for course, count in zip(courses, [0, 3, 3, 0, 7, 3], strict=True):
        Course.objects.filter(pk=course.pk).update(total_enrollments=count)
    return courses


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order.POPULAR, "c4 c5 c2 c1 c3 c0"),
        (Order.NEWEST, "c5 c4 c3 c2 c1 c0"),
        (Order.TITLE, "c1 c2 c5 c0 c3 c4"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("search", ["", "a b"])
def test_pages_contain_each_course_once_in_both_directions(
    courses_with_ties: list[Course], order: str, expected: str, size: int, search: str
) -> None:
    if search:
        Course.objects.update(title=connection.ops.quote_name("A b")[1:-1])
        expected = "c5 c4 c3 c2 c1 c0" if order == Order.NEWEST else expected
        expected = "c0 c1 c2 c3 c4 c5" if order == Order.TITLE else expected
    pages = read_all_pages(size=size, order=order, search=search)
    assert pages == (expected.split(), expected.split())


def test_next_page_skips_and_repeats_nothing_after_changes(
    courses_with_ties: list[Course], make_course: Make
) -> None:
    first = catalog_page(order=Order.NEWEST, size=3)
    make_course(slug="newer")
    courses_with_ties[4].delete()
    assert slugs(order=Order.NEWEST, size=3, after=first.after) == ["c2", "c1", "c0"]


def test_cursor_of_a_deleted_course_is_valid(courses_with_ties: list[Course]) -> None:
    first = catalog_page(size=2)
    courses_with_ties[5].delete()
    assert slugs(size=2, after=first.after) == ["c2", "c1"]


def test_page_after_the_last_course_is_empty(courses_with_ties: list[Course]) -> None:
    pk = courses_with_ties[0].pk
    page = catalog_page(order=Order.NEWEST, after=f"{pk}.{pk}")
    assert (page.courses, page.before, page.after) == ([], "", "")


@pytest.mark.parametrize(
    ("order", "cursor"),
    [("popular", "x"), ("popular", "5"), ("popular", ".5"), ("popular", "5.x"), ("newest", "x")],
)
def test_invalid_cursor_raises(db: None, order: str, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        catalog_page(order=order, after=cursor)


@pytest.mark.parametrize("cursor", [f"{10**30}.{10**30}", f"{-(10**30)}.-5"])
def test_cursor_may_exceed_the_range_of_the_columns(
    courses_with_ties: list[Course], cursor: str
) -> None:
    assert len(slugs(after=cursor)) in (0, 6)


def test_unknown_order_raises(db: None) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        catalog_page(order="nonsense")


def test_search_matches_all_words_literally(make_course: Make) -> None:
    make_course(title="Graph Theory", slug="theory")
    make_course(title="Theory of 100% graphs", slug="percent")
    make_course(title="Drawing", slug="drawing")
    assert set(slugs(search="theory GRAPH")) == {"theory", "percent"}
    assert slugs(search="0%") == ["percent"]
    assert slugs(search="graph_theory") == []
    assert slugs(search="\\' \N{GRINNING FACE} \x00") == []


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("order", "place", "with_subject"),
    # Not in the middle of one subject: docs/guarantees.md names this limit.
    [(order, place, False) for order in Order for place in ("first", "middle")]
    + [(order, "first", True) for order in Order],
)
def test_page_reads_a_bounded_number_of_rows(order: str, place: str, with_subject: bool) -> None:
    large = Subject.objects.create(name="Large and unpopular", slug="large")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO courses_course (title, slug, total_enrollments, subject_id) "
            "SELECT CONCAT('Course ', seq %% 500), CONCAT('c', seq), seq %% 30, "
            "IF(seq %% 30 < 20, %s, NULL) FROM seq_1_to_30000",
            [large.pk],
        )
        cursor.execute("ANALYZE TABLE courses_course")
        cursor.fetchall()
        arguments = {"order": order, "subject": large if with_subject else None}
        after = catalog_page(**arguments, size=9_000).after if place == "middle" else ""
        cursor.execute("FLUSH STATUS")
        assert len(slugs(**arguments, after=after)) == 50
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        assert sum(int(number) for _, number in cursor.fetchall()) < 250


def test_catalog_page_shows_courses_with_their_counts(
    client: Client, make_course: Make, make_students: Make
) -> None:
    art = Subject.objects.create(name="Art", slug="art")
    music = make_course(title="Music <i>live</i>")
    drawing = make_course(title="Drawing", subject=art, capacity=20)
    teacher = get_user_model().objects.create(username="mm", first_name="Mia", last_name="May")
    Course.objects.filter(pk=drawing.pk).update(instructor=teacher)
    enroll_many(course=drawing, students=make_students(3))
    assert "Drawing Art · Mia May 3 students 17 of 20 seats left" in visible_text(client.get("/"))
    assert "Music &lt;i&gt;live&lt;/i&gt; 0 students no seat limit" in visible_text(client.get("/"))
    enroll(student=make_students(1)[0], course=music)
    assert displayed_counts(client.get("/")) == [3, 1]
    assert drift_by_title() == {}


@pytest.mark.parametrize(
    ("capacity", "seats"),
    [
        (3, "Full · 3 seats"),
        (2, "Full · 2 seats"),
        (1001, "998 of 1,001"),
        (0, "3 students not open for enrollment"),
    ],
)
def test_catalog_page_shows_free_seats(
    client: Client, make_course: Make, make_students: Make, capacity: int, seats: str
) -> None:
    course = make_course()
    enroll_many(course=course, students=make_students(3))
    Course.objects.filter(pk=course.pk).update(capacity=capacity)
    assert seats in visible_text(client.get("/"))


def test_empty_catalog_and_empty_search_have_a_message(client: Client, db: None) -> None:
    assert "There are no courses yet." in visible_text(client.get("/"))
    assert "No courses found." in visible_text(client.get("/?search=x"))


@pytest.mark.django_db(transaction=True)
def test_change_outside_django_is_shown_immediately(client: Client, course: Course) -> None:
    for stored in (5, 6):
        # A cursor of the driver, because cachalot watches Django's cursors.
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"UPDATE courses_course SET total_enrollments = {stored}")
        for path in ("/", course.get_absolute_url()):
            assert displayed_counts(client.get(path)) == [stored]


def test_responses_with_counts_are_not_cached(client: Client, course: Course) -> None:
    for path in ("/", course.get_absolute_url(), "/api/courses", f"/api/courses/{course.slug}"):
        assert "no-store" in client.get(path)["Cache-Control"]


def test_page_links_keep_the_query(client: Client, make_course: Make) -> None:
    for number in range(120):
        make_course(title=f"Same {number:03}")
    page = client.get("/?search=same&order=title").content.decode()
    next_query = re.search(r'href="([^"]*)" rel="next"', page)[1].replace("&amp;", "&")
    second = client.get(f"/{next_query}").content.decode()
    assert re.findall(r"Same \d+", second) == [f"Same {number:03}" for number in range(50, 100)]
    assert 'rel="prev"' in second
    assert "after=" not in re.search(r'href="([^"]*)" rel="prev"', second)[1]


@pytest.mark.parametrize(
    "query",
    [
        *("after=x", "before=1", "order=x", "subject=x", "search=" + "x" * 101, "search=%00"),
        "order=title&order=x&subject=y&after=z",
    ],
)
def test_invalid_parameters_are_dropped(client: Client, course: Course, query: str) -> None:
    response = client.get(f"/?source=newsletter&{query}", follow=True)
    assert response.redirect_chain[-1] == ("/?source=newsletter", 302)
    assert (response.status_code, displayed_counts(response)) == (200, [0])
    assert client.get(f"/?{query}", follow=True).redirect_chain[-1] == ("/", 302)


@pytest.mark.parametrize(("is_student", "expected"), [(False, 1), (True, 3)])
def test_catalog_page_uses_a_constant_number_of_queries(
    client: Client,
    make_course: Make,
    student: Any,
    settings: Any,
    is_student: bool,
    expected: int,
) -> None:
    def add_courses(number: int) -> None:
        for _ in range(number):
            slug = f"s{Subject.objects.count()}"
            make_course(
                subject=Subject.objects.create(name=slug, slug=slug),
                instructor=get_user_model().objects.create(username=slug),
            )

    def count_queries(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(path).status_code == 200
        return len(captured)

    if is_student:
        client.force_login(student)
    is_cached = "project.cachalot.PatchedCachalotConfig" in settings.INSTALLED_APPS
    for number in (2, 60):
        add_courses(number)
        for path, subject_queries in (
            ("/", 1),
            ("/?search=c&subject=s1&order=title", 2),
            ("/?order=newest&after=9.9", 1),
        ):
            count_queries(path)
            # Courses, for students session and user, and subjects unless cached.
            assert count_queries(path) == expected + (0 if is_cached else subject_queries)
