import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

from courses.models import Course, Subject
from enrollments.services import enroll, enroll_many
from tests.conftest import drifts

Make = Callable[..., Any]


def rows(page: HttpResponse) -> list[list[str]]:
    body = page.content.decode().split("<tbody>")[1]
    return [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
        for row in re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL)
    ]


def test_the_catalogue_shows_courses_by_title_with_their_counts(
    client: Client, make_course: Make, make_students: Make
) -> None:
    art = Subject.objects.create(name="Art", slug="art")
    music = make_course(title="Music <i>live</i>")
    drawing = make_course(title="Drawing", subject=art, capacity=20)
    enroll_many(course=drawing, students=make_students(3))
    assert rows(client.get("/")) == [
        ["Drawing", "Art", "3", "20"],
        ["Music &lt;i&gt;live&lt;/i&gt;", "", "0", "no limit"],
    ]
    enroll(student=make_students(1)[0], course=music)
    assert rows(client.get("/"))[1][2] == "1"
    assert drifts() == {}


def test_an_empty_catalogue_says_so(client: Client, db: None) -> None:
    assert "There are no courses yet." in client.get("/").content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_change_past_django_shows_at_once(client: Client, course: Course) -> None:
    for stored in ("5", "6"):
        # Not even the cache in front of Django's cursors sees this one.
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"UPDATE courses_course SET total_enrollments = {stored}")
        assert rows(client.get("/"))[0][2] == stored


def test_nobody_on_the_way_keeps_the_page(client: Client, db: None) -> None:
    assert client.get("/")["Cache-Control"] == "no-cache"


def test_the_catalogue_has_pages(client: Client, make_course: Make) -> None:
    for number in range(51):
        # Titles may be equal: no course is shown twice, and none is left out.
        make_course(title="Same", slug=f"same-{number}", capacity=number)
    first, second = client.get("/"), client.get("/?page=2")
    assert "Page 1 of 2" in first.content.decode()
    assert 'href="?page=2" rel="next"' in first.content.decode()
    assert 'href="?page=1" rel="prev"' in second.content.decode()
    assert sorted(int(row[3]) for row in rows(first) + rows(second)) == list(range(51))
    assert client.get("/?page=3").status_code == 404
    assert client.get("/?page=x").status_code == 404


def test_more_courses_need_no_more_queries(client: Client, make_course: Make) -> None:
    def add(number: int) -> None:
        for _ in range(number):
            slug = f"s{Subject.objects.count()}"
            make_course(subject=Subject.objects.create(name=slug, slug=slug))

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert len(rows(client.get("/"))) == Course.objects.count()
        return len(captured)

    add(2)
    before = queries()
    add(20)
    assert queries() == before
