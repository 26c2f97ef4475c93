import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

from courses.catalog import InvalidCursor, Order, catalog_page
from courses.models import Course, Subject
from enrollments.services import enroll, enroll_many
from tests.conftest import drifts

Make = Callable[..., Any]


def text(page: HttpResponse) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.content.decode()))


def counts(page: HttpResponse) -> list[int]:
    return [int(n) for n in re.findall(r'<data value="(-?\d+)">', page.content.decode())]


def slugs(**asked: Any) -> list[str]:
    return [course.slug for course in catalog_page(**asked).courses]


def walk(*, size: int, **asked: Any) -> tuple[list[str], list[str]]:
    """All pages forwards, then all pages backwards from the last."""
    there: list[str] = []
    page = catalog_page(size=size, **asked)
    assert page.before == ""
    while True:
        there += [course.slug for course in page.courses]
        if not page.after:
            break
        page = catalog_page(size=size, after=page.after, **asked)
    back = [course.slug for course in page.courses]
    while page.before:
        page = catalog_page(size=size, before=page.before, **asked)
        back = [course.slug for course in page.courses] + back
    return there, back


@pytest.fixture
def some_courses(make_course: Make) -> list[Course]:
    """Courses with equal titles and equal counts among them."""
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
def test_pages_there_and_back_show_each_course_once(
    some_courses: list[Course], order: str, expected: str, size: int, search: str
) -> None:
    if search:
        Course.objects.update(title=connection.ops.quote_name("A b")[1:-1])
        expected = "c5 c4 c3 c2 c1 c0" if order == Order.NEWEST else expected
        expected = "c0 c1 c2 c3 c4 c5" if order == Order.TITLE else expected
    assert walk(size=size, order=order, search=search) == (expected.split(), expected.split())


def test_a_page_begins_where_the_last_one_ended_whatever_came_before_it(
    some_courses: list[Course], make_course: Make
) -> None:
    first = catalog_page(order=Order.NEWEST, size=3)
    make_course(slug="newer")
    some_courses[4].delete()
    assert slugs(order=Order.NEWEST, size=3, after=first.after) == ["c2", "c1", "c0"]


def test_the_course_at_which_a_page_ended_may_be_gone(some_courses: list[Course]) -> None:
    first = catalog_page(size=2)
    some_courses[5].delete()
    assert slugs(size=2, after=first.after) == ["c2", "c1"]


def test_a_page_past_the_end_is_empty(some_courses: list[Course]) -> None:
    page = catalog_page(order=Order.NEWEST, after=str(some_courses[0].pk))
    assert (page.courses, page.before, page.after) == ([], "", "")


@pytest.mark.parametrize(
    ("order", "position"),
    [("popular", "x"), ("popular", "5"), ("popular", ".5"), ("popular", "5.x"), ("newest", "x")],
)
def test_a_position_that_is_none_is_refused(db: None, order: str, position: str) -> None:
    with pytest.raises(InvalidCursor):
        catalog_page(order=order, after=position)


@pytest.mark.parametrize("position", [f"{10**30}.{10**30}", f"{-(10**30)}.-5"])
def test_numbers_beyond_all_columns_are_positions(
    some_courses: list[Course], position: str
) -> None:
    assert len(slugs(after=position)) in (0, 6)


def test_an_order_that_does_not_exist_is_refused(db: None) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        catalog_page(order="nonsense")


def test_all_words_are_searched_for_as_they_are(make_course: Make) -> None:
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
    ("order", "where", "with_subject"),
    # Deep within one subject, a page passes by what comes before it: see docs/guarantees.md.
    [(order, where, False) for order in Order for where in ("first", "middle")]
    + [(order, "first", True) for order in Order],
)
def test_no_page_reads_more_rows_than_it_shows(order: str, where: str, with_subject: bool) -> None:
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
        asked = {"order": order, "subject": large if with_subject else None}
        after = catalog_page(**asked, size=9_000).after if where == "middle" else ""
        cursor.execute("FLUSH STATUS")
        assert len(slugs(**asked, after=after)) == 50
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        assert sum(int(number) for _, number in cursor.fetchall()) < 250


# The page of it ---------------------------------------------------------------


def test_the_catalog_shows_courses_with_their_counts(
    client: Client, make_course: Make, make_students: Make
) -> None:
    art = Subject.objects.create(name="Art", slug="art")
    music = make_course(title="Music <i>live</i>")
    drawing = make_course(title="Drawing", subject=art, capacity=20)
    teacher = get_user_model().objects.create(username="mm", first_name="Mia", last_name="May")
    Course.objects.filter(pk=drawing.pk).update(instructor=teacher)
    enroll_many(course=drawing, students=make_students(3))
    assert "Drawing Art · Mia May 3 students 17 of 20 seats left" in text(client.get("/"))
    assert "Music &lt;i&gt;live&lt;/i&gt; 0 students no seat limit" in text(client.get("/"))
    enroll(student=make_students(1)[0], course=music)
    assert counts(client.get("/")) == [3, 1]
    assert drifts() == {}


@pytest.mark.parametrize(
    ("capacity", "said"), [(3, "Full · 3 seats"), (2, "Full · 2 seats"), (1001, "998 of 1,001")]
)
def test_seats(
    client: Client, make_course: Make, make_students: Make, capacity: int, said: str
) -> None:
    course = make_course()
    enroll_many(course=course, students=make_students(3))
    Course.objects.filter(pk=course.pk).update(capacity=capacity)
    assert said in text(client.get("/"))


def test_an_empty_catalog_says_so(client: Client, db: None) -> None:
    assert "There are no courses yet." in text(client.get("/"))
    assert "No course found." in text(client.get("/?search=x"))


@pytest.mark.django_db(transaction=True)
def test_a_change_past_django_shows_at_once(client: Client, course: Course) -> None:
    for stored in (5, 6):
        # Not even the cache in front of Django's cursors sees this one.
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"UPDATE courses_course SET total_enrollments = {stored}")
        assert counts(client.get("/")) == counts(client.get(course.get_absolute_url())) == [stored]


def test_nobody_on_the_way_keeps_a_page_with_counts(client: Client, course: Course) -> None:
    for address in ("/", course.get_absolute_url(), "/api/courses", f"/api/courses/{course.slug}"):
        assert "no-store" in client.get(address)["Cache-Control"]


def test_links_to_other_pages_keep_what_was_asked(client: Client, make_course: Make) -> None:
    for number in range(120):
        make_course(title=f"Same {number:03}")
    page = client.get("/?search=same&order=title").content.decode()
    address = re.search(r'href="([^"]*)" rel="next"', page)[1].replace("&amp;", "&")
    second = client.get(f"/{address}").content.decode()
    assert re.findall(r"Same \d+", second) == [f"Same {number:03}" for number in range(50, 100)]
    assert 'rel="prev"' in second
    assert "after=" not in re.search(r'href="([^"]*)" rel="prev"', second)[1]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("after=x", 404),
        ("before=1", 404),
        ("order=x", 400),
        ("subject=x", 400),
        ("search=" + "x" * 101, 400),
    ],
)
def test_an_address_that_says_nothing_is_answered_with_why(
    client: Client, db: None, query: str, status: int
) -> None:
    assert client.get(f"/?{query}").status_code == status


@pytest.mark.parametrize(("is_student", "expected"), [(False, 2), (True, 4)])
def test_the_number_of_queries_is_constant(
    client: Client,
    make_course: Make,
    student: Any,
    settings: Any,
    is_student: bool,
    expected: int,
) -> None:
    def add(number: int) -> None:
        for _ in range(number):
            slug = f"s{Subject.objects.count()}"
            make_course(
                subject=Subject.objects.create(name=slug, slug=slug),
                instructor=get_user_model().objects.create(username=slug),
            )

    def queries(address: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(address).status_code == 200
        return len(captured)

    if is_student:
        client.force_login(student)
    cached = int("project.cachalot.FencedCachalotConfig" in settings.INSTALLED_APPS)
    for number in (2, 60):
        add(number)
        queries("/")
        # Courses, subjects where they aren't cached; session and user.
        for address in ("/", "/?search=c&subject=s1&order=title", "/?order=newest&after=9"):
            assert queries(address) == expected - cached
