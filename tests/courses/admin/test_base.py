import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.admin import base as large_tables
from courses.admin import courses as admin
from courses.counts import audit as ledger
from courses.counts import status as health
from courses.counts.audit import run_audit
from courses.counts.drift import rebuild
from courses.models import CountRun, Course, Subject
from enrollments.services import enroll, enroll_many, set_status, unenroll
from tests.conftest import drifts
from tests.support.pages import column, select, texts

Make = Callable[..., Any]
TRUE = 3  # the number of the column, as links that sort by it have it
COURSES, ROWS = "/admin/courses/course/", "/admin/enrollments/enrollment/"
USERS, SUBJECTS = "/admin/auth/user/", "/admin/courses/subject/"
EVENTS = "/admin/enrollments/enrollmentevent/"
RUNS, FOUND = "/admin/courses/countrun/", "/admin/courses/countdiscrepancy/"
COMPLETE = "/admin/autocomplete/?app_label={}&model_name={}&field_name={}&term={}"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are large with three rows."""
    monkeypatch.setattr(large_tables, "LARGE", 2)


@pytest.fixture
def farthest(large: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda rows: monkeypatch.setattr(large_tables, "FARTHEST", rows)


@pytest.fixture
def courses(make_course: Make) -> Any:
    yield [make_course(title=title, slug=title.lower()) for title in "ABCD"]
    list(rebuild())


def damage(course: Course, to: int) -> None:
    Course.objects.filter(pk=course.pk).update(total_enrollments=to)


def check() -> None:
    list(run_audit(kind=CountRun.Kind.CHECK, actor="the tests"))


def said(page: HttpResponse) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.content.decode()))


def drifted(client: Client, query: str = "") -> list[str]:
    return column(client.get(f"{COURSES}?drifted=yes{query}"), "title")


# What a page reads ---------------------------------------------------------------------

# Number of queries of each page, and of rows that it may read; all tables have 6,000 or more.
FEW = 1_500
PAGES = {
    "/admin/": (3, 100),
    COURSES: (8, FEW),
    f"{COURSES}?p=4": (8, FEW),
    f"{COURSES}?o=1": (8, FEW),
    f"{COURSES}?o=-1": (8, FEW),
    f"{COURSES}?o=2": (8, FEW),
    f"{COURSES}?o=3": (8, FEW),
    f"{COURSES}?o=-4": (8, FEW),
    f"{COURSES}?o=5": (8, FEW),
    f"{COURSES}?o=6.1": (8, FEW),
    f"{COURSES}?_facets=True": (8, FEW),
    f"{COURSES}?drifted=yes": (14, FEW),
    f"{COURSES}?drifted=yes&o=-4": (14, FEW),
    # All courses of a subject are sorted, or all titles read: of 4,000 here.
    f"{COURSES}?subject__id__exact=1": (8, 6_500),
    # A search reads all titles.
    f"{COURSES}?q=nothing": (6, 7_000),
    # The course of 3,000 rows, which are the count that it shows.
    f"{COURSES}?o=-2": (8, FEW + 3_000),
    f"{COURSES}1/change/": (6, 3_100),
    f"{COURSES}1/delete/": (5, 2_100),
    f"{COURSES}7/history/": (6, 100),
    ROWS: (5, FEW),
    f"{ROWS}?p=4": (5, FEW),
    f"{ROWS}?o=1.2": (5, FEW),
    f"{ROWS}?o=4": (5, FEW),
    f"{ROWS}?status__exact=withdrawn": (5, 2_500),
    f"{ROWS}?status__exact=completed": (4, 2_500),
    f"{ROWS}?q=student77": (6, FEW),
    f"{ROWS}?q=student": (6, FEW),
    f"{ROWS}?q=nobody": (4, 100),
    f"{ROWS}?course__id__exact=1": (5, FEW),
    f"{ROWS}?course__id__exact=1&status__exact=active": (5, FEW),
    f"{ROWS}1/change/": (6, 100),
    EVENTS: (5, FEW),
    f"{EVENTS}?p=4": (5, FEW),
    f"{EVENTS}?o=1": (5, FEW),
    f"{EVENTS}?o=-6": (5, FEW),
    f"{EVENTS}?student__id__exact=7": (5, FEW),
    f"{EVENTS}?course__id__exact=1": (5, FEW),
    f"{EVENTS}1/change/": (3, 100),
    f"{ROWS}1/delete/": (5, 100),
    f"{ROWS}add/": (2, 100),
    USERS: (6, FEW),
    f"{USERS}?p=4": (6, FEW),
    f"{USERS}?o=1": (6, FEW),
    f"{USERS}?o=-3": (6, FEW),
    f"{USERS}?is_staff__exact=1": (6, 2_500),
    f"{USERS}?q=student77": (6, FEW),
    f"{USERS}?q=nobody": (5, 100),
    f"{USERS}7/change/": (8, 600),
    f"{USERS}7/delete/": (5, 100),
    SUBJECTS: (5, FEW),
    f"{SUBJECTS}?o=2": (5, FEW),
    f"{SUBJECTS}1/delete/": (5, 2_100),
    RUNS: (5, FEW),
    f"{RUNS}?o=1": (5, FEW),
    f"{RUNS}?o=5": (5, FEW),
    f"{RUNS}?kind__exact=rebuild": (5, 2_500),
    FOUND: (5, FEW),
    f"{FOUND}?o=3": (5, FEW),
    f"{FOUND}?corrected__exact=1": (4, 2_500),
    f"{FOUND}?course__id__exact=7": (5, FEW),
    f"{FOUND}?run__id__exact=7": (5, FEW),
    COMPLETE.format("enrollments", "enrollment", "student", "student7"): (5, FEW),
    COMPLETE.format("enrollments", "enrollment", "course", ""): (5, FEW),
    COMPLETE.format("courses", "course", "subject", ""): (5, FEW),
}


TABLES = [
    *("auth_user", "courses_subject", "courses_course", "enrollments_enrollment"),
    *("courses_countrun", "courses_countdiscrepancy", "django_admin_log"),
    "enrollments_enrollmentevent",
]


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch, django_user_model: Any) -> Client:
    monkeypatch.setattr(large_tables, "LARGE", 1_000)
    monkeypatch.setattr(large_tables, "FARTHEST", 1_000)
    staff = django_user_model.objects.create_superuser("staff")
    types = {"type": ContentType.objects.get_for_model(Course).pk, "staff": staff.pk}
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} AUTO_INCREMENT = 1")
        for statement in [
            "INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, "
            "email, is_staff, is_active, date_joined) SELECT 100000 + seq, '!', 0, "
            "CONCAT('student', seq), '', '', '', 0, 1, NOW() FROM seq_1_to_6000",
            "UPDATE auth_user SET id = id - 100000 + (id - 100000 >= %(staff)s) "
            "WHERE id > 100000 ORDER BY id",
            "INSERT INTO courses_subject (id, name, slug) "
            "SELECT seq, CONCAT('Subject ', seq), CONCAT('s', seq) FROM seq_1_to_6000",
            "INSERT INTO courses_course (id, title, slug, subject_id, total_enrollments) "
            "SELECT seq, CONCAT('Course ', seq * 7919 %% 6007), CONCAT('c', seq), "
            "IF(seq %% 3, 1, seq), IF(seq = 1, 3000, 0) FROM seq_1_to_6000",
            "INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date) "
            "SELECT id, 1, 'active', NOW() FROM auth_user ORDER BY id LIMIT 3000",
            "INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date, "
            "withdrawal_date) SELECT 7 + course.seq, 1 + course.seq, 'withdrawn', NOW(), NOW() "
            "FROM seq_1_to_3000 AS course",
            "INSERT INTO enrollments_enrollmentevent (student_id, course_id, what, status, at, "
            "source, actor) SELECT IF(seq %% 10, student_id, 7), course_id, 'enrolled', status, "
            "enrollment_date, 'code', '' FROM enrollments_enrollment JOIN seq_1_to_10 AS n",
            "INSERT INTO courses_countrun (id, kind, `by`, started_at, finished_at, is_full, "
            "courses_checked, drifted, corrected, absolute_drift, stored_sum, true_sum, enrolled_by_day) "
            "SELECT seq, IF(seq %% 500, 'check', 'rebuild'), 'x', NOW(), NOW(), 1, 0, "
            "seq = 6000, 0, 0, 0, 0, '' FROM seq_1_to_6000",
            "INSERT INTO courses_countdiscrepancy (run_id, course_id, course_title, stored, `true`, "
            "drift, corrected, at) SELECT seq, 2 + seq %% 3000, 'x', 1, 0, 1, 0, NOW() "
            "FROM seq_1_to_6000",
            "INSERT INTO django_admin_log (action_time, user_id, content_type_id, object_id, "
            "object_repr, action_flag, change_message) SELECT NOW(), %(staff)s, %(type)s, seq, "
            "'x', 2, '[]' FROM seq_1_to_6000",
            "UPDATE courses_course SET total_enrollments = 5 WHERE id = 2",
            f"ANALYZE TABLE {', '.join(TABLES)}",
        ]:
            cursor.execute(statement, types)
    client = Client()
    client.force_login(staff)
    return client


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_no_page_reads_more_rows_than_it_needs(filled: Client) -> None:
    def asked(path: str) -> tuple[int, int]:
        assert filled.get(path).status_code == 200, path  # the first time, more is read and kept
        with connection.cursor() as cursor:
            cursor.execute("FLUSH STATUS")
            with CaptureQueriesContext(connection) as captured:
                filled.get(path)
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return len(captured), sum(int(number) for _, number in cursor.fetchall())

    found = {path: asked(path) for path in PAGES}
    # Some of the queries are answered by the cache, where there is one.
    assert {path: seen for path, seen in found.items() if seen[0] > PAGES[path][0]} == {}
    assert {path: seen for path, seen in found.items() if seen[1] > PAGES[path][1]} == {}


# Lists of large tables -------------------------------------------------------------------


def test_pages_lead_through_all_rows_and_count_no_further(
    staff_client: Client, large: None, make_course: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_tables, "AHEAD", 2)
    for number in range(240):
        make_course(title=f"Same {number % 3}", slug=f"s{number}")
    seen: list[str] = []
    for number, counted in enumerate(["more than 100", "more than 150", "more than 200"], 1):
        page = staff_client.get(f"{COURSES}?p={number}")
        assert f"… {counted} courses" in said(page)
        assert f"{counted} results" in said(staff_client.get(f"{COURSES}?p={number}&q=same"))
        assert b"across all pages" not in page.content
        seen += [course.slug for course in page.context["cl"].result_list]
    for number in (4, 5):
        page = staff_client.get(f"{COURSES}?p={number}")
        assert "240 courses" in said(page)
        assert "more than" not in said(page)
        seen += [course.slug for course in page.context["cl"].result_list]
    in_order = Course.objects.order_by("title", "pk").values_list("slug", flat=True)
    assert seen == list(in_order)
    for beyond in ("p=6", "p=2&q=s239", "p=0", "p=-1"):
        assert staff_client.get(f"{COURSES}?{beyond}").url == f"{COURSES}?e=1"
    for no_number in ("x", "9" * 5_000):
        assert staff_client.get(COURSES, {"p": no_number}).context["cl"].page_num == 1


def test_pages_end_where_passing_by_becomes_dear_and_say_so(
    staff_client: Client, farthest: Make, make_course: Make
) -> None:
    farthest(100)
    for _ in range(120):
        make_course()
    assert "The pages end after 100 courses" in said(staff_client.get(f"{COURSES}?p=2"))
    assert staff_client.get(f"{COURSES}?p=3").url == f"{COURSES}?e=1"
    assert "The pages end" not in said(staff_client.get(f"{COURSES}?q=Course 11"))


def test_a_column_without_an_index_does_not_sort(
    staff_client: Client, large: None, courses: list[Course]
) -> None:
    for course, capacity in zip(courses, (3, 1, 4, 2), strict=True):
        Course.objects.filter(pk=course.pk).update(capacity=capacity)
    page = staff_client.get(f"{COURSES}?o=5")
    assert column(page, "title") == list("ABCD")
    assert re.findall(r'class="[^"]*sortable[^"]*column-(\w+)', page.content.decode()) == [
        "title",
        "stored",
    ]
    assert column(staff_client.get(f"{COURSES}?o=-1"), "title") == list("DCBA")


def test_a_filter_without_an_index_looks_at_the_newest_and_says_so(
    staff_client: Client, farthest: Make, course: Course, make_students: Make
) -> None:
    farthest(3)
    students = make_students(5)
    for student in students:
        enroll(student=student, course=course)
        unenroll(student=student, course=course)
    set_status(student=students[4], course=course, status="completed")
    page = staff_client.get(f"{ROWS}?status__exact=withdrawn")
    assert len(page.context["cl"].result_list) == 2
    assert "among the newest 3 enrollments only" in said(page)
    # Of one course, or of few students, all rows are looked at.
    for query in (f"course__id__exact={course.pk}", "q=student"):
        page = staff_client.get(f"{ROWS}?status__exact=withdrawn&{query}")
        assert len(page.context["cl"].result_list) == 4
        assert "among the newest" not in said(page)


def test_what_is_filtered_comes_newest_first(
    staff_client: Client, farthest: Make, make_students: Make
) -> None:
    farthest(5)
    make_students(9)
    page = staff_client.get(f"{USERS}?is_staff__exact=0&o=1")
    assert column(page, "username") == [f"student{number}" for number in (9, 8, 7, 6, 5)]
    assert "among the newest 5 users only" in said(page)


def test_enrollments_are_searched_by_the_beginning_of_a_username(
    staff_client: Client, large: None, make_course: Make, make_students: Make
) -> None:
    students = make_students(12)
    for course in [make_course(title="student1"), make_course()]:
        enroll_many(course=course, students=students)

    def found(words: str) -> set[str]:
        page = staff_client.get(ROWS, {"q": words})
        assert "By the beginning of a username" in said(page)
        return {row.student.username for row in page.context["cl"].result_list}

    assert found("STUDENT1") == {"student1", "student10", "student11", "student12"}
    assert found("tudent1") == found("%") == set()


def test_rows_of_a_course_come_by_status(
    staff_client: Client, large: None, course: Course, make_students: Make
) -> None:
    students = make_students(4)
    enroll_many(course=course, students=students)
    unenroll(student=students[0], course=course)
    link = f"{ROWS}?course__id__exact={course.pk}"
    assert link in staff_client.get(f"{COURSES}{course.pk}/change/").content.decode()
    rows = staff_client.get(link).context["cl"].result_list
    assert [row.student for row in rows] == [*students[1:], students[0]]


def test_users_are_searched_by_the_beginning_of_the_username(
    staff_client: Client, large: None, make_students: Make
) -> None:
    make_students(11)
    page = staff_client.get(f"{USERS}?q=student1")
    assert column(page, "username") == ["student1", "student10", "student11"]
    assert column(staff_client.get(f"{USERS}?q=tudent"), "username") == []


def test_choices_come_page_by_page(staff_client: Client, large: None, make_students: Make) -> None:
    make_students(45)
    seen = []
    for number, more in [(1, True), (2, True), (3, False)]:
        path = COMPLETE.format("enrollments", "enrollment", "student", "student")
        found = staff_client.get(f"{path}&page={number}").json()
        assert found["pagination"]["more"] is more
        seen += [one["text"] for one in found["results"]]
    assert seen == sorted(f"student{number}" for number in range(1, 46))


def test_more_subjects_than_a_list_of_links_has_room_for_are_no_filter(
    staff_client: Client, courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    art = Subject.objects.create(name="Art", slug="art")
    assert f"subject__id__exact={art.pk}" in staff_client.get(COURSES).content.decode()
    monkeypatch.setattr(admin, "MOST_CHOICES", 0)
    assert b"subject__id__exact" not in staff_client.get(COURSES).content


# Drift of large tables -------------------------------------------------------------------


def test_the_filter_shows_what_the_ledger_knows_as_it_is_now(
    staff_client: Client, large: None, courses: list[Course]
) -> None:
    page = staff_client.get(f"{COURSES}?drifted=yes")
    assert "nobody has looked at all counts yet" in said(page)
    damage(courses[0], 3)
    damage(courses[1], 1)
    check()
    assert "found drifted by the tests" in said(staff_client.get(f"{COURSES}?drifted=yes"))
    assert drifted(staff_client) == ["A", "B"]
    assert drifted(staff_client, f"&o={TRUE + 1}") == ["B", "A"]
    # What is right by now is left out, what is wrong has its number of now.
    damage(courses[0], 0)
    damage(courses[1], 2)
    page = staff_client.get(f"{COURSES}?drifted=yes")
    assert column(page, "drift") == ['<strong class="drift">+2</strong>']
    # What has drifted since is not known, until somebody looks.
    damage(courses[2], 1)
    assert drifted(staff_client) == ["B"]
    # The note is of the filter, not of its name in the address.
    assert "found drifted by" in said(staff_client.get(f"{COURSES}?drifted=yes"))
    assert "found drifted by" not in said(staff_client.get(f"{COURSES}?drifted=no"))
    answer = staff_client.post(f"{COURSES}health/", {"then": "drifted"})
    assert answer.url == f"{COURSES}?drifted=yes"
    assert drifted(staff_client) == ["B", "C"]


def test_what_a_part_of_the_courses_was_found_to_have_is_known_beside_the_rest(
    large: None, courses: list[Course]
) -> None:
    damage(courses[0], 1)
    check()
    damage(courses[1], 1)
    part = Course.objects.filter(pk=courses[1].pk)
    list(run_audit(kind=CountRun.Kind.CHECK, actor="the tests", courses=part))
    assert health.known_drifts().course_ids == {courses[0].pk, courses[1].pk}
    list(run_audit(kind=CountRun.Kind.REBUILD, actor="the tests"))
    assert health.known_drifts().course_ids == set()


def test_more_drifts_than_the_ledger_enters_are_told(
    staff_client: Client, large: None, courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ledger, health):
        monkeypatch.setattr(module, "MOST_FOUND", 2)
    for stored, course in enumerate(courses[:3], 1):
        damage(course, stored)
    check()
    assert drifted(staff_client) == ["B", "C"]
    page = said(staff_client.get(f"{COURSES}?drifted=yes"))
    assert "It found 3, and only the largest drifts are looked at here" in page
    damage(courses[2], 0)
    check()
    assert "only the largest" not in said(staff_client.get(f"{COURSES}?drifted=yes"))


def test_the_counts_of_a_page_are_of_this_moment(
    staff_client: Client, large: None, courses: list[Course], make_students: Make
) -> None:
    check()
    enroll_many(course=courses[0], students=make_students(2))
    damage(courses[1], 1)
    page = staff_client.get(COURSES)
    assert column(page, "true") == ["2", "0", "0", "0"]
    assert column(page, "drift")[:2] == ["0", '<strong class="drift">+1</strong>']
    # All that is not shown is not counted: no order by it.
    assert column(staff_client.get(f"{COURSES}?o={TRUE}"), "title") == list("ABCD")


def test_few_courses_of_many_rows_sort_by_what_is_not_counted(
    staff_client: Client, courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "counting_is_dear", lambda request: True)
    Course.objects.filter(title="C").update(capacity=1, total_enrollments=1)
    assert column(staff_client.get(f"{COURSES}?o=-{TRUE + 1}"), "title") == list("ABCD")
    assert column(staff_client.get(f"{COURSES}?o=-5"), "title")[0] == "C"


def test_deleted_rows_make_no_table_large(
    staff_client: Client, large: None, courses: list[Course]
) -> None:
    Course.objects.filter(title__in="AB").delete()
    assert column(staff_client.get(f"{COURSES}?o=-5"), "title") == ["C", "D"]
    assert b"By words of the title" not in staff_client.get(COURSES).content


def test_small_tables_say_nothing_is_full_this(staff_client: Client, courses: list[Course]) -> None:
    damage(courses[0], 1)
    page = said(staff_client.get(f"{COURSES}?drifted=yes"))
    assert column(staff_client.get(f"{COURSES}?drifted=yes"), "title") == ["A"]
    assert not re.search("Check now|only|more than", page)


# Actions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "refused"),
    [
        ("rebuild_counts", "Nothing was rebuilt: select at most 3 at a time, or correct all"),
        ("delete_selected", "Nothing was deleted: select at most 3 at a time."),
    ],
)
def test_an_action_takes_a_number_of_courses_that_it_can_do_at_once(
    staff_client: Client,
    courses: list[Course],
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    refused: str,
) -> None:
    monkeypatch.setattr(large_tables, "MOST_SELECTED", 3)
    monkeypatch.setattr(admin, "MOST_SELECTED", 3)
    damage(courses[0], 1)
    page = select(staff_client, action, courses[:1], index=0, select_across=1, post="yes")
    assert texts(page)[0].startswith(refused)
    assert len(drifts()) == 1
    assert Course.objects.count() == 4
    select(staff_client, action, courses[:3], index=0, post="yes")
    assert len(drifts()) == 0


def test_a_subject_with_courses_is_kept_and_they_are_not_listed(
    staff_client: Client, courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_tables, "MOST_TOLD", 3)
    art, music, law = (
        Subject.objects.create(name=name, slug=name.lower()) for name in ("Art", "Music", "Law")
    )
    Course.objects.update(subject=art)
    Course.objects.filter(pk=courses[0].pk).update(subject=music)
    page = staff_client.get(f"{SUBJECTS}{music.pk}/delete/").content.decode()
    assert "Cannot delete" in page
    assert "Music: 1 course<" in page
    Course.objects.update(subject=art)
    data = {"action": "delete_selected", "_selected_action": [art.pk, law.pk], "post": "yes"}
    page = staff_client.post(SUBJECTS, data).content.decode()
    assert "Art: more than 3 courses" in page
    assert "/courses/course/" not in page.partition("protected")[2]
    assert Subject.objects.count() == 3
    staff_client.post(f"{SUBJECTS}{law.pk}/delete/", {"post": "yes"})
    assert Subject.objects.count() == 2


def test_recent_actions_are_the_newest(staff_client: Client, course: Course) -> None:
    staff = get_user_model().objects.get()
    for number in range(15):
        LogEntry.objects.create(
            user=staff,
            action_time=timezone.now(),
            object_repr=f"Thing {number:02}",
            action_flag=CHANGE,
            change_message="[]",
        )
    things = re.findall(r"Thing (\d+)", staff_client.get("/admin/").content.decode())
    assert things == [f"{number:02}" for number in reversed(range(5, 15))]
