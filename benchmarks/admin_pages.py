"""Every page of the admin on large tables, against the queries that it can't do without.

    python -m benchmarks.admin_pages                  3 million enrolment rows, some minutes
    python -m benchmarks.admin_pages --size small     a hundredth of it
    python -m benchmarks.admin_pages --only users     pages whose name has this in it

Prints a table: of each page its queries, its time, the part of it that the database took, and
the time of the necessary queries through the bare driver: those of the session and the person,
and what is shown. Times are medians. On a private MariaDB, of which nothing is left behind.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import django

from tests.servers import MissingPrograms, ServerError, mariadb

ROUNDS = 5
# Seconds: what takes longer is asked once only.
SLOW = 3.0


@dataclass(frozen=True)
class Size:
    users: int
    courses: int
    largest: int  # rows of course 1
    rows: int  # in all
    subjects: int
    runs: int  # in the ledger
    drifts: int  # in the ledger
    logged: int  # changes by the person who looks


SIZES = {
    "large": Size(1_200_000, 100_000, 1_000_000, 3_000_000, 200, 100_000, 1_000_000, 100_000),
    "small": Size(12_000, 1_000, 10_000, 30_000, 200, 1_000, 10_000, 1_000),
}
# Courses with a wrong count.
DRIFTED = 300
STATUS = """
    CASE WHEN {0} % 10 = 0 THEN 'withdrawn' WHEN {0} % 10 = 5 THEN 'completed' ELSE 'active' END
"""


def fill(size: Size) -> None:
    """Have the server make all rows, one course of them the largest; then check the counts."""
    from django.contrib.auth import get_user_model
    from django.contrib.contenttypes.models import ContentType
    from django.core.management import call_command

    from courses.ledger import recorded
    from courses.models import CountRun, Course
    from enrollments.models import Enrollment

    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser("staff", password="staff")
    status = STATUS.format("place.seq")
    smaller = (size.rows - size.largest) // (size.courses - 1)
    types = [ContentType.objects.get_for_model(model).pk for model in (Course, Enrollment)]
    execute(
        f"""
        INSERT INTO auth_user (
            password, is_superuser, username, first_name, last_name, email, is_staff, is_active,
            date_joined
        )
        SELECT '!', 0, CONCAT('student', seq), ELT(1 + seq % 7, 'Anna', 'Ben', 'Chloe', 'Dev',
            'Ema', 'Finn', 'Gus'), CONCAT('Name', seq % 9973),
            CONCAT('student', seq, '@example.org'), seq <= 20, 1, NOW(6)
        FROM seq_2_to_{size.users}
        """,
        f"""
        INSERT INTO courses_subject (name, slug)
        SELECT CONCAT('Subject ', seq), CONCAT('subject-', seq) FROM seq_1_to_{size.subjects}
        """,
        # In no order of titles. Most are of one subject.
        f"""
        INSERT INTO courses_course (
            id, title, slug, subject_id, instructor_id, capacity, total_enrollments
        )
        SELECT seq, CONCAT(ELT(1 + seq % 5, 'Advanced', 'Basic', 'Modern', 'Practical', 'Pure'),
            ' ', ELT(1 + seq % 7, 'Art', 'Biology', 'Chemistry', 'Drawing', 'Economics', 'French',
            'Graphs'), ' ', seq * 7919 % 100003), CONCAT('course-', seq),
            IF(seq % 10, 1, 2 + seq % {size.subjects - 1}), 1 + seq % 1000,
            IF(seq % 3, NULL, 2000000), 0
        FROM seq_1_to_{size.courses}
        """,
        f"""
        INSERT INTO enrollments_enrollment (
            student_id, course_id, status, enrollment_date, withdrawal_date
        )
        SELECT place.seq, 1, {status}, NOW(6) - INTERVAL place.seq % 400 DAY,
            IF(place.seq % 10, NULL, NOW(6))
        FROM seq_1_to_{size.largest} AS place
        """,
        f"""
        INSERT INTO enrollments_enrollment (
            student_id, course_id, status, enrollment_date, withdrawal_date
        )
        SELECT 1 + (course.id * 7919 + place.seq * 31) % {size.users}, course.id, {status},
            NOW(6) - INTERVAL course.id % 400 DAY, IF(place.seq % 10, NULL, NOW(6))
        FROM courses_course AS course JOIN seq_1_to_{smaller} AS place WHERE course.id > 1
        """,
        """
        UPDATE courses_course AS course
        JOIN (
            SELECT course_id, COUNT(*) AS counted FROM enrollments_enrollment
            WHERE status IN ('active', 'completed') GROUP BY course_id
        ) AS found ON found.course_id = course.id
        SET course.total_enrollments = found.counted + IF(course.id <= 1 + :drifted, 1 +
            course.id % 9, 0)
        """.replace(":drifted", str(min(DRIFTED, size.courses // 3))),
        f"""
        INSERT INTO courses_countrun (
            kind, `by`, started_at, finished_at, of_all, looked_at, drifted, corrected,
            absolute_drift, stored_sum, true_sum, enrolled_by_day
        )
        SELECT IF(seq % 1000, 'check', 'rebuild'), 'rebuild_counts',
            NOW(6) - INTERVAL ({size.runs} - seq) * 10 MINUTE,
            NOW(6) - INTERVAL ({size.runs} - seq) * 10 MINUTE, 1, {size.courses}, 10,
            IF(seq % 1000, 0, 10), 10, {size.rows}, {size.rows}, ''
        FROM seq_1_to_{size.runs}
        """,
        f"""
        INSERT INTO courses_countcorrection (
            run_id, course_id, course_title, stored, `true`, drift, corrected, at
        )
        SELECT run.id, 1 + (run.id * 7 + place.seq) % {size.courses}, 'A course', 21, 20, 1,
            run.kind = 'rebuild', run.started_at
        FROM courses_countrun AS run JOIN seq_1_to_{size.drifts // size.runs} AS place
        """,
        f"""
        INSERT INTO django_admin_log (
            action_time, user_id, content_type_id, object_id, object_repr, action_flag,
            change_message
        )
        SELECT NOW(6) - INTERVAL {size.logged} - seq SECOND, 1, IF(seq % 2, {types[0]},
            {types[1]}), seq, 'Something', 2, '[]'
        FROM seq_1_to_{size.logged}
        """,
        # An event for each row, and for the one person who comes and goes a thousand more.
        """
        INSERT INTO enrollments_enrollmentevent (
            student_id, course_id, what, status, enrollment_date, at, source, actor
        )
        SELECT student_id, course_id, IF(status = 'active', 'enrolled', status), status,
            enrollment_date, enrollment_date, 'import', 'catalogue'
        FROM enrollments_enrollment ORDER BY id
        """,
        """
        INSERT INTO enrollments_enrollmentevent (
            student_id, course_id, what, status, enrollment_date, at, source, actor
        )
        SELECT 7, 1, IF(seq % 2, 'taken_up', 'withdrawn'), IF(seq % 2, 'active', 'withdrawn'),
            NOW(6), NOW(6), 'page', 'student7'
        FROM seq_1_to_1000
        """,
        "ANALYZE TABLE auth_user, courses_course, courses_subject, courses_countrun, "
        "courses_countcorrection, enrollments_enrollment, enrollments_enrollmentevent, "
        "django_admin_log",
    )
    list(recorded(kind=CountRun.Kind.CHECK, by="rebuild_counts"))


def execute(*statements: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@dataclass(frozen=True)
class PageOf:
    """One request, and the statements that it can't do without."""

    name: str
    path: str
    necessary: Sequence[str]
    post: dict[str, Any] | None = None
    before: Callable[[], object] | None = None  # each request, not measured


@dataclass
class Measured:
    page: PageOf
    queries: int = 0
    seconds: list[float] = field(default_factory=list)
    in_database: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)


# What each page reads to know who asks.
WHO = [
    "SELECT session_key, session_data, expire_date FROM django_session LIMIT 1",
    "SELECT * FROM auth_user WHERE id = 1",
]
COUNTED = "status IN ('active', 'completed')"
COURSE_COLUMNS = "id, title, slug, subject_id, instructor_id, capacity, total_enrollments"


def course_page(which: str) -> str:
    """The statement for one page of courses with their true counts."""
    return f"""
        SELECT course.*, subject.name, (
            SELECT COUNT(*) FROM enrollments_enrollment AS row
            WHERE row.course_id = course.id AND {COUNTED}
        ) FROM (SELECT id FROM courses_course AS course {which}) AS page
        JOIN courses_course AS course USING (id)
        LEFT JOIN courses_subject AS subject ON subject.id = course.subject_id
    """


def row_page(which: str) -> str:
    """The statement for one page of enrolments."""
    return f"""
        SELECT row.*, student.username, course.title
        FROM (SELECT id FROM enrollments_enrollment AS row {which}) AS page
        JOIN enrollments_enrollment AS row USING (id)
        JOIN auth_user AS student ON student.id = row.student_id
        JOIN courses_course AS course ON course.id = row.course_id
    """


def pages(size: Size) -> Iterator[PageOf]:
    from courses.models import Course
    from enrollments.models import Enrollment
    from enrollments.services import enroll, unenroll

    courses, rows = "/admin/courses/course/", "/admin/enrollments/enrollment/"
    users, subjects = "/admin/auth/user/", "/admin/courses/subject/"
    runs, drifts = "/admin/courses/countrun/", "/admin/courses/countcorrection/"
    ordered = "ORDER BY title, id LIMIT 50"
    count = f"SELECT COUNT(*) FROM enrollments_enrollment WHERE {COUNTED} AND course_id"
    known = """
        SELECT course_id FROM courses_countcorrection
        WHERE run_id = (SELECT MAX(id) FROM courses_countrun)
    """
    drifted = course_page(
        f"""
        JOIN ({known}) AS known ON known.course_id = course.id
        WHERE CAST(total_enrollments AS SIGNED) <> (
            SELECT COUNT(*) FROM enrollments_enrollment AS row
            WHERE row.course_id = course.id AND {COUNTED}
        ) ORDER BY title LIMIT 50
        """
    )
    far = min(1_000, size.courses // 50)

    yield PageOf(
        "index",
        "/admin/",
        ["SELECT * FROM django_admin_log WHERE user_id = 1 ORDER BY id DESC LIMIT 10"],
    )

    yield PageOf("courses", courses, [course_page(ordered)])
    yield PageOf(
        f"courses, page {far}",
        f"{courses}?p={far}",
        [course_page(f"{ordered} OFFSET {far * 50 - 50}")],
    )
    last = size.courses // 50
    yield PageOf(
        "courses, last page",
        f"{courses}?p={last}",
        [course_page(f"{ordered} OFFSET {last * 50 - 50}")],
    )
    for number, name, by in [
        (1, "title", "title, id"),
        (2, "stored", "total_enrollments, id"),
        (3, "true", "title, id"),
        (4, "drift", "title, id"),
        (5, "capacity", "title, id"),
        (6, "subject", "title, id"),
    ]:
        for sign, down in [("", ""), ("-", " DESC")]:
            order = by.replace(",", f"{down},") + down if name in ("title", "stored") else by
            yield PageOf(
                f"courses by {sign}{name}",
                f"{courses}?o={sign}{number}",
                [course_page(f"ORDER BY {order} LIMIT 50")],
            )
    yield PageOf("courses drifted", f"{courses}?drifted=yes", [drifted])
    yield PageOf("courses drifted by -drift", f"{courses}?drifted=yes&o=-4", [drifted])
    for subject, name in [(1, "large"), (5, "small")]:
        yield PageOf(
            f"courses of a {name} subject",
            f"{courses}?subject__id__exact={subject}",
            [course_page(f"WHERE subject_id = {subject} {ordered}")],
        )
    for words, name in [("graphs", "many"), ("nothing", "none")]:
        yield PageOf(
            f"courses searched, {name} found",
            f"{courses}?q={words}",
            [course_page(f"WHERE title LIKE '%{words}%' {ordered}")],
        )
    one = f"SELECT {COURSE_COLUMNS} FROM courses_course WHERE id = 1"
    instructor = "SELECT username FROM auth_user WHERE id = 2"
    subject = "SELECT name FROM courses_subject WHERE id = 1"
    yield PageOf(
        "course, the largest", f"{courses}1/change/", [one, instructor, subject, f"{count} = 1"]
    )
    form = Course.objects.values("title", "slug", "subject", "instructor").get(pk=1)
    yield PageOf(
        "course saved",
        f"{courses}1/change/",
        [
            one,
            instructor,
            subject,
            "SELECT 1 FROM courses_course WHERE slug = 'course-1'",
            "UPDATE courses_course SET title = title WHERE id = 1",
        ],
        post={**form, "capacity": ""},
    )
    exists = "SELECT 1 FROM enrollments_enrollment WHERE course_id = {} LIMIT 1"
    yield PageOf("course deletion asked", f"{courses}1/delete/", [one, exists.format(1)])
    yield PageOf(
        "course history",
        f"{courses}1/history/",
        [one, "SELECT * FROM django_admin_log WHERE id = 1"],
    )
    keys = list(Course.objects.order_by("title", "pk").values_list("pk", flat=True)[:49])
    listed = ", ".join(map(str, keys))
    chosen = {"_selected_action": [1, *keys], "index": 0}
    yield PageOf(
        "courses, 50 to delete",
        courses,
        [
            f"SELECT {COURSE_COLUMNS} FROM courses_course WHERE id IN (1, {listed})",
            *[exists.format(key) for key in [1, *keys]],
        ],
        post={"action": "delete_selected"} | chosen,
    )
    yield PageOf(
        "courses, 50 rebuilt",
        courses,
        [
            f"""
        SELECT id, title, total_enrollments, (
            SELECT COUNT(*) FROM enrollments_enrollment AS row
            WHERE row.course_id = course.id AND {COUNTED}
        ) FROM courses_course AS course WHERE id IN (1, {listed})
        """
        ],
        post={"action": "rebuild_counts"} | chosen,
        before=lambda: Course.objects.filter(pk__in=keys[:3]).update(total_enrollments=7),
    )
    yield PageOf(
        "courses, all to delete",
        courses,
        ["SELECT id FROM courses_course LIMIT 501"],
        post={"action": "delete_selected", "select_across": 1} | chosen,
    )

    yield PageOf("enrolments", rows, [row_page("ORDER BY id DESC LIMIT 50")])
    yield PageOf(
        "enrolments, page 1000",
        f"{rows}?p={far}",
        [row_page(f"ORDER BY id DESC LIMIT 50 OFFSET {far * 50 - 50}")],
    )
    for status in ("withdrawn", "completed"):
        yield PageOf(
            f"enrolments {status}",
            f"{rows}?status__exact={status}",
            [row_page(f"WHERE status = '{status}' ORDER BY id DESC LIMIT 50")],
        )
    for number, name in enumerate(["student", "status", "course", "date", "withdrawn"], 1):
        yield PageOf(
            f"enrolments by {name}",
            f"{rows}?o={number}",
            [row_page("ORDER BY id DESC LIMIT 50")],
        )
    found = """
        WHERE student_id IN (
            SELECT * FROM (
                SELECT id FROM auth_user WHERE username LIKE '{}%' ORDER BY username LIMIT 100
            ) AS student
        ) ORDER BY id DESC LIMIT 50
    """
    for words, name in [("student100200", "few"), ("student", "many"), ("nobody", "none")]:
        yield PageOf(
            f"enrolments searched, {name} found",
            f"{rows}?q={words}",
            [row_page(found.format(words))],
        )
    for course, name in [(1, "large"), (5, "small")]:
        of = f"WHERE course_id = {course}"
        yield PageOf(
            f"enrolments of a {name} course",
            f"{rows}?course__id__exact={course}",
            [row_page(f"{of} ORDER BY status, id LIMIT 50")],
        )
    row = Enrollment.objects.filter(course=5).counted().order_by("pk")[0]
    student = row.student_id
    row_now = row_page(f"WHERE id = {row.pk}")
    events = "/admin/enrollments/enrollmentevent/"
    event_page = """
        SELECT event.*, student.username, course.title
        FROM (SELECT id FROM enrollments_enrollmentevent {} ORDER BY id DESC LIMIT {}) AS page
        JOIN enrollments_enrollmentevent AS event USING (id)
        LEFT JOIN auth_user AS student ON student.id = event.student_id
        LEFT JOIN courses_course AS course ON course.id = event.course_id
    """
    yield PageOf("events", events, [event_page.format("", 50)])
    for name, of in [
        ("an often changed student", "student_id = 7"),
        ("the largest course", "course_id = 1"),
        ("a small course", "course_id = 5"),
    ]:
        query = of.replace("_id = ", "__id__exact=")
        yield PageOf(
            f"events of {name}", f"{events}?{query}", [event_page.format(f"WHERE {of}", 50)]
        )
    yield PageOf("event", f"{events}1/change/", [event_page.format("WHERE id = 1", 50)])
    of_row = event_page.format(f"WHERE student_id = {student} AND course_id = 5", 20)
    yield PageOf("enrolment", f"{rows}{row.pk}/change/", [row_now, of_row])
    yield PageOf(
        "enrolment saved",
        f"{rows}{row.pk}/change/",
        [row_now, "SELECT * FROM courses_course WHERE id = 5 FOR UPDATE", row_now],
        post={"status": row.status},
    )
    yield PageOf("enrolment to add", f"{rows}add/", [])
    added = [
        f"SELECT * FROM auth_user WHERE id = {student}",
        "SELECT * FROM courses_course WHERE id = 5",
        "UPDATE courses_course SET total_enrollments = total_enrollments + 1 WHERE id = 5",
        f"UPDATE enrollments_enrollment SET status = 'active' WHERE id = {row.pk}",
    ]
    yield PageOf(
        "enrolment added",
        f"{rows}add/",
        added,
        post={"student": student, "course": 5},
        before=lambda: unenroll(student=student, course=5),
    )
    yield PageOf("enrolment withdrawal asked", f"{rows}{row.pk}/delete/", [row_now])
    yield PageOf(
        "enrolment withdrawn",
        f"{rows}{row.pk}/delete/",
        [
            *added[:3],
            "UPDATE enrollments_enrollment SET status = 'withdrawn', "
            f"withdrawal_date = NOW() WHERE id = {row.pk}",
        ],
        post={"post": "yes"},
        before=lambda: enroll(student=student, course=5),
    )
    some = list(Enrollment.objects.counted().order_by("-pk")[:50])
    kept = {"action": "delete_selected", "_selected_action": [each.pk for each in some]}
    listed_rows = ", ".join(str(each.pk) for each in some)
    yield PageOf(
        "enrolments, 50 to withdraw",
        rows,
        [row_page(f"WHERE id IN ({listed_rows})")],
        post=kept | {"index": 0},
    )

    by_name = "ORDER BY username LIMIT 50"
    yield PageOf("users", users, [f"SELECT * FROM auth_user {by_name}"])
    yield PageOf(
        "users, page 1000",
        f"{users}?p={far}",
        [
            f"""
        SELECT auth_user.* FROM (
            SELECT id FROM auth_user ORDER BY username LIMIT 50 OFFSET {far * 50 - 50}
        ) AS page JOIN auth_user USING (id)
        """
        ],
    )
    for number, name in enumerate(["username", "email", "first name", "last name", "staff"], 1):
        yield PageOf(
            f"users by {name}", f"{users}?o={number}", [f"SELECT * FROM auth_user {by_name}"]
        )
    yield PageOf(
        "users who are staff",
        f"{users}?is_staff__exact=1",
        [f"SELECT * FROM auth_user {by_name}"],
    )
    for words, name in [("student100200", "few"), ("student", "many"), ("nobody", "none")]:
        yield PageOf(
            f"users searched, {name} found",
            f"{users}?q={words}",
            [f"SELECT * FROM auth_user WHERE username LIKE '{words}%' {by_name}"],
        )
    user = "SELECT * FROM auth_user WHERE id = 7"
    permissions = "SELECT * FROM auth_permission JOIN django_content_type"
    yield PageOf(
        "user",
        f"{users}7/change/",
        [
            user,
            permissions + " ON django_content_type.id = content_type_id",
            "SELECT * FROM auth_group",
            event_page.format("WHERE student_id = 7", 20),
        ],
    )
    yield PageOf(
        "user deletion asked",
        f"{users}7/delete/",
        [
            user,
            "SELECT 1 FROM enrollments_enrollment WHERE student_id = 7 LIMIT 1",
        ],
    )

    yield PageOf("subjects", subjects, ["SELECT * FROM courses_subject ORDER BY name LIMIT 100"])
    yield PageOf(
        "subjects by slug",
        f"{subjects}?o=2",
        ["SELECT * FROM courses_subject ORDER BY slug LIMIT 100"],
    )
    yield PageOf(
        "subject, the largest",
        f"{subjects}1/change/",
        ["SELECT * FROM courses_subject WHERE id = 1"],
    )
    few = [
        "SELECT * FROM courses_subject WHERE id = 1",
        "SELECT 1 FROM courses_course WHERE subject_id = 1 LIMIT 1",
    ]
    yield PageOf("subject deletion asked", f"{subjects}1/delete/", few)
    yield PageOf(
        "subjects, 1 to delete",
        subjects,
        few,
        post={"action": "delete_selected", "_selected_action": [1], "index": 0},
    )

    complete = "/admin/autocomplete/?app_label={}&model_name={}&field_name={}&term={}"
    for words in ("", "student1002", "nobody"):
        yield PageOf(
            f"choosing a student, “{words}”",
            complete.format("enrollments", "enrollment", "student", words),
            [f"SELECT * FROM auth_user WHERE username LIKE '{words}%' ORDER BY username LIMIT 21"],
        )
    for words in ("", "graphs"):
        yield PageOf(
            f"choosing a course, “{words}”",
            complete.format("enrollments", "enrollment", "course", words),
            [f"SELECT * FROM courses_course WHERE title LIKE '%{words}%' ORDER BY title LIMIT 21"],
        )
    yield PageOf(
        "choosing a subject, “”",
        complete.format("courses", "course", "subject", ""),
        ["SELECT * FROM courses_subject ORDER BY name LIMIT 21"],
    )

    run_columns = """
        SELECT id, kind, `by`, started_at, finished_at, of_all, looked_at, drifted, corrected
        FROM courses_countrun
    """
    newest_run = f"{run_columns} ORDER BY id DESC LIMIT 50"
    yield PageOf("runs", runs, [newest_run])
    yield PageOf(
        f"runs, page {far}",
        f"{runs}?p={size.runs // 50}",
        [f"{newest_run} OFFSET {size.runs - 50}"],
    )
    for number, name in enumerate(
        ["started", "kind", "by", "looked at", "drifted", "corrected"], 1
    ):
        order = "started_at, id" if name == "started" else "id DESC"
        yield PageOf(
            f"runs by {name}", f"{runs}?o={number}", [f"{run_columns} ORDER BY {order} LIMIT 50"]
        )
    yield PageOf(
        "runs that rebuild",
        f"{runs}?kind__exact=rebuild",
        [f"{run_columns} WHERE kind = 'rebuild' ORDER BY id DESC LIMIT 50"],
    )
    yield PageOf("run", f"{runs}1/change/", [f"{run_columns} WHERE id = 1"])
    newest = """
        SELECT found.*, run.* FROM (
            SELECT id FROM courses_countcorrection {} ORDER BY id DESC LIMIT 50
        ) AS page
        JOIN courses_countcorrection AS found USING (id)
        JOIN courses_countrun AS run ON run.id = run_id
    """
    yield PageOf("drifts", drifts, [newest.format("")])
    for number, name in enumerate(
        ["course", "stored", "true", "drift", "corrected", "at", "by"], 1
    ):
        yield PageOf(f"drifts by {name}", f"{drifts}?o={number}", [newest.format("")])
    yield PageOf(
        "drifts corrected", f"{drifts}?corrected__exact=1", [newest.format("WHERE corrected")]
    )
    yield PageOf(
        "drifts of a course",
        f"{drifts}?course__id__exact=5",
        [newest.format("WHERE course_id = 5")],
    )
    yield PageOf(
        "drifts of a run", f"{drifts}?run__id__exact=5", [newest.format("WHERE run_id = 5")]
    )
    yield PageOf("drift", f"{drifts}1/change/", [newest.format("WHERE run_id = 1")])
    yield PageOf(
        "count health",
        f"{courses}health/",
        [
            f"{run_columns} WHERE of_all ORDER BY id DESC LIMIT 1",
            f"{known} ORDER BY id LIMIT 20",
            """
        SELECT DATE(started_at), COUNT(*), MAX(drifted), SUM(corrected) FROM courses_countrun
        WHERE started_at > NOW() - INTERVAL 60 DAY GROUP BY 1
        """,
            f"{run_columns} ORDER BY id DESC LIMIT 10",
            "SELECT * FROM courses_countrun WHERE enrolled_by_day <> '' ORDER BY id DESC LIMIT 1",
        ],
    )


def measured(page: PageOf, client: Any, driver: Any) -> Measured:
    """Ask it and the bare driver by turns, the first time unmeasured."""
    from django.db import connection

    result = Measured(page)
    for number in range(ROUNDS + 1):
        if page.before:
            page.before()
        spent: list[float] = []

        def watch(execute: Callable[..., Any], *asked: Any, spent: list[float] = spent) -> Any:
            began = time.perf_counter()
            try:
                return execute(*asked)
            finally:
                spent.append(time.perf_counter() - began)

        with connection.execute_wrapper(watch):
            began = time.perf_counter()
            if page.post is None:
                answer = client.get(page.path)
            else:
                answer = client.post(page.path, page.post)
            taken = time.perf_counter() - began
        if answer.status_code not in (200, 302):
            raise AssertionError(f"{page.name}: {answer.status_code}")
        began = time.perf_counter()
        with driver.cursor() as cursor:
            for statement in [*WHO, *page.necessary]:
                cursor.execute(statement)
                cursor.fetchall()
        driver.rollback()
        bare = time.perf_counter() - began
        if number or taken > SLOW:
            result.queries = len(spent)
            result.seconds.append(taken)
            result.in_database.append(sum(spent))
            result.bare.append(bare)
        if taken > SLOW:
            break
    return result


HEAD = ("page", "queries", "page ms", "database ms", "bare ms", "database ÷ bare")


def table(results: Sequence[Measured]) -> list[str]:
    lines = [HEAD]
    for result in results:
        seconds, database, bare = (
            statistics.median(times) * 1000
            for times in (result.seconds, result.in_database, result.bare)
        )
        numbers = [f"{result.queries}", f"{seconds:,.0f}", f"{database:,.1f}", f"{bare:,.1f}"]
        lines.append((result.page.name, *numbers, f"{database / bare:,.1f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    rule = "|-" + "|-".join("-" * width + (":" if n else "-") for n, width in enumerate(widths))
    padded = [
        "| "
        + " | ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    return [padded[0], rule + "|", *padded[1:]]


@contextmanager
def asking() -> Iterator[tuple[Any, Any]]:
    """A superuser's client, and a connection without Django."""
    import MySQLdb
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.test import Client
    from django.test.utils import override_settings

    with override_settings(SECURE_SSL_REDIRECT=False, ALLOWED_HOSTS=["testserver"]):
        client = Client()
        client.force_login(get_user_model().objects.get(username="staff"))
        driver = MySQLdb.connect(**connection.get_connection_params())
        with closing(driver):
            driver.cursor().execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            yield client, driver


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--only", help="pages with this in their name")
    given = parser.parse_args()
    try:
        with mariadb() as database:
            os.environ["DATABASE_URL"] = database.url
            os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
            os.environ["LOG_LEVEL"] = "CRITICAL"
            os.environ.pop("REDIS_URL", None)
            django.setup()
            fill(SIZES[given.size])
            print("\n".join(lines(given)))
    except ServerError as error:
        print(f"benchmarks.admin_pages: {error}", file=sys.stderr)
        return 2 if isinstance(error, MissingPrograms) else 1
    return 0


def lines(given: argparse.Namespace) -> list[str]:
    from tqdm import tqdm

    from benchmarks.report import where

    words = [Path(word).name for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", "benchmarks.admin_pages", *words])
    head = where(size=given.size, rounds=ROUNDS, command=command)
    with asking() as (client, driver):
        asked = [p for p in pages(SIZES[given.size]) if (given.only or "") in p.name]
        results = [measured(page, client, driver) for page in tqdm(asked, disable=None)]
    return [*head, "", *table(results)]


if __name__ == "__main__":
    sys.exit(main())
