"""How admin lists are read, sorted, filtered and paginated, and how deletion is protected."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from django.contrib.messages.storage import default_storage
from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.admin import base
from courses.admin.base import retry_on_conflict
from courses.models import CountDiscrepancy, CountRun, Course, Subject
from tests.support.pages import column_values, message_texts, visible_text

Make = Callable[..., Any]
COURSES = "/admin/courses/course/"
SUBJECTS = "/admin/courses/subject/"
ENROLLMENTS = "/admin/enrollments/enrollment/"
EVENTS = "/admin/enrollments/enrollmentevent/"
USERS = "/admin/auth/user/"
RUNS = "/admin/courses/countrun/"
DISCREPANCIES = "/admin/courses/countdiscrepancy/"
AUTOCOMPLETE = "/admin/autocomplete/?app_label={}&model_name={}&field_name={}&term={}"

# Rows read ---------------------------------------------------------------------------------

ROWS = 6_000  # in each table, and more in some
FEW = 1_500
# The maximum numbers of queries and of rows that InnoDB reads for each page.
MAX_READS = {
    "/admin/": (3, 100),
    COURSES: (8, FEW),
    f"{COURSES}?p=4": (8, FEW),
    f"{COURSES}?o=1": (8, FEW),
    f"{COURSES}?o=-1": (8, FEW),
    f"{COURSES}?o=2": (8, FEW),
    f"{COURSES}?o=5": (8, FEW),
    f"{COURSES}?o=6.1": (8, FEW),
    f"{COURSES}?_facets=True": (8, FEW),
    # The course with 3,000 enrollments comes first, and its true count is shown.
    f"{COURSES}?o=-2": (8, FEW + 3_000),
    f"{COURSES}?drifted=last-check": (8, FEW),
    # Live drift counts the enrollments of every course.
    f"{COURSES}?o=3": (8, 3 * ROWS + FEW),
    f"{COURSES}?o=-4": (8, 3 * ROWS + FEW),
    f"{COURSES}?drifted=yes": (8, 3 * ROWS + FEW),
    f"{COURSES}?drifted=yes&o=-4": (8, 3 * ROWS + FEW),
    # The 4,000 courses of the subject are sorted.
    f"{COURSES}?subject__id__exact=1": (8, 6_500),
    # A search for words reads every title.
    f"{COURSES}?q=nothing": (6, ROWS + 1_000),
    f"{COURSES}1/change/": (6, 3_100),
    f"{COURSES}1/delete/": (5, 3_100),
    f"{COURSES}7/history/": (6, 100),
    ENROLLMENTS: (5, FEW),
    f"{ENROLLMENTS}?p=4": (5, FEW),
    f"{ENROLLMENTS}?o=1.2": (5, FEW),
    f"{ENROLLMENTS}?o=4": (5, FEW),
    f"{ENROLLMENTS}?q=student77": (6, FEW),
    f"{ENROLLMENTS}?q=student": (6, FEW),
    f"{ENROLLMENTS}?q=student&status__exact=completed": (6, FEW),
    f"{ENROLLMENTS}?q=nobody": (4, 100),
    f"{ENROLLMENTS}?course__id__exact=1": (5, FEW),
    f"{ENROLLMENTS}?course__id__exact=1&status__exact=active": (5, FEW),
    f"{ENROLLMENTS}?course__id__exact=1&status__exact=completed": (5, FEW),
    f"{ENROLLMENTS}1/change/": (6, 100),
    f"{ENROLLMENTS}add/": (2, 100),
    EVENTS: (5, FEW),
    f"{EVENTS}?p=4": (5, FEW),
    f"{EVENTS}?o=1": (5, FEW),
    f"{EVENTS}?o=-6": (5, FEW),
    f"{EVENTS}?student__id__exact=7": (5, FEW),
    f"{EVENTS}?course__id__exact=1": (5, FEW),
    f"{EVENTS}1/change/": (5, 100),
    USERS: (6, FEW),
    f"{USERS}?p=4": (6, FEW),
    f"{USERS}?o=1": (6, FEW),
    f"{USERS}?o=-3": (6, FEW),
    f"{USERS}?groups__id__exact=1": (6, FEW),
    f"{USERS}?q=student77": (6, FEW),
    f"{USERS}?q=nobody": (5, 100),
    f"{USERS}7/change/": (8, 600),
    f"{USERS}7/delete/": (5, 100),
    SUBJECTS: (5, FEW),
    f"{SUBJECTS}?o=2": (5, FEW),
    f"{SUBJECTS}1/delete/": (5, 100),
    RUNS: (5, FEW),
    f"{RUNS}?o=1": (5, FEW),
    f"{RUNS}?o=5": (5, FEW),
    # No index serves this filter, but runs are pruned.
    f"{RUNS}?kind__exact=rebuild": (5, ROWS + 500),
    DISCREPANCIES: (5, FEW),
    f"{DISCREPANCIES}?o=3": (5, FEW),
    f"{DISCREPANCIES}?course__id__exact=7": (5, FEW),
    f"{DISCREPANCIES}?run__id__exact=7": (5, FEW),
    AUTOCOMPLETE.format("enrollments", "enrollment", "student", "student7"): (5, FEW),
    AUTOCOMPLETE.format("enrollments", "enrollment", "course", ""): (5, FEW),
    AUTOCOMPLETE.format("courses", "course", "subject", ""): (5, FEW),
}


@pytest.fixture
def client_of_large_tables(client: Client) -> Client:
    """Return a superuser's client on tables of at least ROWS rows."""
    users, now, pks = get_user_model()._default_manager, timezone.now(), range(1, ROWS + 1)
    users.bulk_create(
        [users.model(pk=pk, username=f"student{pk}", password="!", date_joined=now) for pk in pks]
    )
    staff = users.create_superuser("staff")
    Group.objects.create(pk=1, name="tutors").user_set.add(7)
    Subject.objects.bulk_create([Subject(pk=pk, name=f"Subject {pk}", slug=f"s{pk}") for pk in pks])
    Course.objects.bulk_create(
        [
            Course(
                pk=pk,
                title=f"Course {pk * 7919 % 6007}",
                slug=f"c{pk}",
                subject_id=1 if pk % 3 else pk,
            )
            for pk in pks
        ]
    )
    with connection.cursor() as cursor:
        for statement in (
            "ALTER TABLE enrollments_enrollment AUTO_INCREMENT = 1",
            "ALTER TABLE enrollments_enrollmentevent AUTO_INCREMENT = 1",
            "INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date) "
            "SELECT seq, 1, 'active', NOW() FROM seq_1_to_3000",
            "INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date, "
            "withdrawal_date) SELECT 7 + seq, 1 + seq, 'withdrawn', NOW(), NOW() "
            "FROM seq_1_to_3000",
            "INSERT INTO enrollments_enrollmentevent (student_id, course_id, action, status, "
            "created_at, source, actor) SELECT IF(seq % 10, student_id, 7), course_id, 'enrolled', "
            "status, enrollment_date, 'system', '' "
            "FROM enrollments_enrollment JOIN seq_1_to_10 AS n",
        ):
            cursor.execute(statement)
    Course.objects.filter(pk=1).update(total_enrollments=3_000)
    Course.objects.filter(pk=2).update(total_enrollments=5)
    CountRun.objects.bulk_create(
        CountRun(
            pk=pk,
            kind="check" if pk % 500 else "rebuild",
            actor="cron",
            started_at=now,
            finished_at=now,
            is_full=True,
        )
        for pk in pks
    )
    CountDiscrepancy.objects.bulk_create(
        CountDiscrepancy(
            run_id=pk,
            course_id=2 + pk % 3_000,
            course_title="Course",
            stored=1,
            true=0,
            drift=1,
            corrected=False,
            found_at=now,
            last_seen_at=now,
            resolved_at=now + timedelta(hours=1) if pk % 60 else None,
        )
        for pk in pks
    )
    course_type = ContentType.objects.get_for_model(Course)
    LogEntry.objects.bulk_create(
        LogEntry(
            user=staff,
            content_type=course_type,
            object_id=str(pk),
            object_repr="Course",
            action_flag=CHANGE,
            change_message="[]",
        )
        for pk in pks
    )
    tables = ["auth_user", "django_admin_log", "enrollments_enrollment"]
    tables += ["enrollments_enrollmentevent", "courses_course", "courses_subject"]
    tables += ["courses_countrun", "courses_countdiscrepancy"]
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE TABLE {', '.join(tables)}")
    client.force_login(staff)
    return client


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_no_page_reads_more_rows_than_it_needs(client_of_large_tables: Client) -> None:
    client = client_of_large_tables

    def measure(path: str) -> tuple[int, int]:
        # The first request also fills caches.
        assert client.get(path).status_code == 200, path
        with connection.cursor() as cursor:
            cursor.execute("FLUSH STATUS")
            with CaptureQueriesContext(connection) as queries:
                client.get(path)
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return len(queries), sum(int(value) for _, value in cursor.fetchall())

    reads = {path: measure(path) for path in MAX_READS}
    # With Redis, cachalot answers some of the queries.
    assert {path: n for path, n in reads.items() if n[0] > MAX_READS[path][0]} == {}
    assert {path: n for path, n in reads.items() if n[1] > MAX_READS[path][1]} == {}


# Pagination --------------------------------------------------------------------------------


def test_pages_show_every_row_once_and_count_only_the_next_pages(
    staff_client: Client, make_course: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LOOKAHEAD_PAGES", 2)
    for number in range(240):
        make_course(title=f"Same {number % 3}", slug=f"s{number}")
    slugs: list[str] = []
    counts = ["100+ courses", "150+ courses", "200+ courses", " 240 courses", " 240 courses"]
    for number, count in enumerate(counts, 1):
        page = staff_client.get(f"{COURSES}?p={number}")
        assert count in visible_text(page)
        slugs += [course.slug for course in page.context["cl"].result_list]
    assert slugs == list(Course.objects.order_by("title", "pk").values_list("slug", flat=True))


def test_search_results_are_counted_up_to_the_next_pages(
    staff_client: Client, make_course: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LOOKAHEAD_PAGES", 2)
    for _ in range(101):
        make_course()
    page = visible_text(staff_client.get(f"{COURSES}?q=course"))
    assert "100+ results" in page
    assert "Select all 100+ courses" in page
    assert "All 100+ selected" in page
    assert " 1 result " in visible_text(staff_client.get(f"{COURSES}?q=51"))


@pytest.mark.parametrize("query", ["p=2", "p=7", "p=9999999", "p=2&q=x", "p=0", "p=-1"])
def test_a_page_that_does_not_exist_redirects_to_the_list(
    staff_client: Client, course: Course, query: str
) -> None:
    assert staff_client.get(f"{COURSES}?{query}").url == f"{COURSES}?e=1"


@pytest.mark.parametrize("number", ["x", "9" * 5_000])
def test_an_invalid_page_number_is_page_1(
    staff_client: Client, course: Course, number: str
) -> None:
    page = staff_client.get(COURSES, {"p": number})
    assert column_values(page, "title") == [course.title]


def test_a_list_ends_at_the_maximum_offset(
    staff_client: Client, make_course: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_OFFSET", 100)
    for _ in range(120):
        make_course()
    assert "100+ courses" in visible_text(staff_client.get(f"{COURSES}?p=2"))
    assert staff_client.get(f"{COURSES}?p=3").url == f"{COURSES}?e=1"


def test_autocomplete_choices_are_paginated(staff_client: Client, make_students: Make) -> None:
    make_students(45)
    names = []
    for number, has_more in [(1, True), (2, True), (3, False)]:
        path = AUTOCOMPLETE.format("enrollments", "enrollment", "student", "student")
        choices = staff_client.get(f"{path}&page={number}").json()
        assert choices["pagination"]["more"] is has_more
        names += [choice["text"] for choice in choices["results"]]
    assert names == sorted(f"student{number}" for number in range(1, 46))


# Sorting and filtering -----------------------------------------------------------------------


def test_only_indexed_columns_sort_the_list(staff_client: Client, make_course: Make) -> None:
    for title, capacity in zip("ABCD", (3, 1, 4, 2), strict=True):
        make_course(title=title, slug=title.lower(), capacity=capacity)
    page = staff_client.get(f"{COURSES}?o=5")
    assert column_values(page, "title") == list("ABCD")
    assert re.findall(r'class="[^"]*sortable[^"]*column-(\w+)', page.content.decode()) == [
        "title",
        "stored",
        "true",
        "drift",
    ]
    assert column_values(staff_client.get(f"{COURSES}?o=-1"), "title") == list("DCBA")


def test_a_list_sorts_by_one_column(staff_client: Client, make_course: Make) -> None:
    for title in "AB":
        make_course(title=title, slug=title.lower())
    page = staff_client.get(f"{COURSES}?o=2.-1")
    assert column_values(page, "title") == ["A", "B"]
    assert "sortpriority" not in page.content.decode()


@pytest.mark.parametrize(
    "path",
    [
        f"{COURSES}?capacity=1",
        f"{COURSES}?title__contains=a",
        f"{ENROLLMENTS}?status__exact=active",
        f"{USERS}?is_staff__exact=1",
        f"{EVENTS}?action__exact=enrolled",
    ],
)
def test_a_filter_without_an_index_redirects_to_the_list(staff_client: Client, path: str) -> None:
    assert staff_client.get(path).url == path.partition("?")[0] + "?e=1"


# Conflicts ---------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_messages_of_a_failed_attempt_are_discarded(rf: RequestFactory) -> None:
    request = rf.post("/", REMOTE_ADDR="127.0.0.1")
    request.session = {}
    request._messages = default_storage(request)
    attempts = iter([OperationalError(1213, "Deadlock found"), None])

    @retry_on_conflict
    def view(request: HttpRequest) -> HttpResponse:
        messages.success(request, "saved")
        if error := next(attempts):
            raise error
        return HttpResponse()

    view(request)
    assert [str(message) for message in messages.get_messages(request)] == ["saved"]


# Deletion ----------------------------------------------------------------------------------


def test_a_subject_with_courses_is_not_deleted(staff_client: Client, make_course: Make) -> None:
    art, music, law = (
        Subject.objects.create(name=name, slug=name.lower()) for name in ("Art", "Music", "Law")
    )
    for subject in (art, art, music):
        make_course(subject=subject)

    page = staff_client.get(f"{SUBJECTS}{music.pk}/delete/").content.decode()
    assert "Cannot delete" in page
    assert "<li>courses of Music</li>" in page

    data = {"action": "delete_selected", "_selected_action": [art.pk, law.pk], "post": "yes"}
    page = staff_client.post(SUBJECTS, data).content.decode()
    assert "<li>courses of Art</li>" in page
    assert "courses of Law" not in page
    assert "/courses/course/" not in page.partition("protected")[2]
    assert Subject.objects.count() == 3


def test_a_subject_without_courses_is_deleted(staff_client: Client) -> None:
    law = Subject.objects.create(name="Law", slug="law")
    staff_client.post(f"{SUBJECTS}{law.pk}/delete/", {"post": "yes"})
    assert not Subject.objects.exists()


# Django's form takes all of these for true.
@pytest.mark.parametrize("select_across", ["1", "2", "true"])
def test_an_action_accepts_a_maximum_of_objects(
    staff_client: Client, make_course: Make, monkeypatch: pytest.MonkeyPatch, select_across: str
) -> None:
    monkeypatch.setattr(base, "MAX_SELECTED", 1)
    courses = [make_course(), make_course()]
    data = {"action": "delete_selected", "_selected_action": courses[0].pk, "post": "yes"}
    page = staff_client.post(
        COURSES, data | {"index": 0, "select_across": select_across}, follow=True
    )
    assert message_texts(page) == ["Select at most 1 courses."]
    assert Course.objects.count() == 2
    staff_client.post(COURSES, data | {"index": 0})
    assert Course.objects.count() == 1


# The index ---------------------------------------------------------------------------------


def test_the_index_names_the_site(staff_client: Client) -> None:
    html = staff_client.get("/admin/").content.decode()
    assert "<title>Site administration | Course catalog administration</title>" in html


def test_recent_actions_are_the_newest(staff_client: Client) -> None:
    staff = get_user_model().objects.get()
    for number in range(15):
        LogEntry.objects.create(
            user=staff,
            action_time=timezone.now(),
            object_repr=f"Course {number:02}",
            action_flag=CHANGE,
            change_message="[]",
        )
    numbers = re.findall(r"Course (\d+)", staff_client.get("/admin/").content.decode())
    assert numbers == [f"{number:02}" for number in reversed(range(5, 15))]
