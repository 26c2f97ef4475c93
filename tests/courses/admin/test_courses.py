"""The course list with its counts, the rebuild action, and what saving and deleting must keep."""

from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.db.models import F
from django.db.models.signals import post_init, pre_delete, pre_save
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from courses.admin import base
from courses.admin import courses as course_admin
from courses.counts.audit import run_audit
from courses.counts.drift import rebuild
from courses.models import CountRun, Course, Subject
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, unenroll
from tests.support.counts import drift_by_title
from tests.support.locks import locked_past_the_timeout
from tests.support.pages import column_values, message_texts, run_action, sign_in_staff
from tests.support.threads import run_concurrently

Make = Callable[..., Any]
LIST = "/admin/courses/course/"
ADD = f"{LIST}add/"
# The numbers of the columns in links that sort the list.
STORED, TRUE, DRIFT = 2, 3, 4


@pytest.fixture(autouse=True)
def assert_no_drift_remains(db: None) -> Iterator[None]:
    yield
    assert drift_by_title() == {}


@pytest.fixture
def repair_counts(db: None) -> Iterator[None]:
    """Rebuild all counts after a test that makes courses drift."""
    yield
    list(rebuild())


def add_drift(course: Course, drift: int) -> None:
    Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + drift)


@pytest.fixture
def drifted_courses(make_course: Make, make_students: Make, repair_counts: None) -> list[Course]:
    """Return the courses A, too high by 2, B, correct, and C, too low by 1."""
    courses = [make_course(title=title, slug=title.lower()) for title in "ABC"]
    for course, students in zip(courses, (2, 1, 3), strict=True):
        enroll_many(course=course, students=make_students(students))
    add_drift(courses[0], +2)
    add_drift(courses[2], -1)
    return courses


# The list ----------------------------------------------------------------------------------


def test_the_list_shows_stored_count_true_count_and_drift(
    staff_client: Client, drifted_courses: list[Course]
) -> None:
    page = staff_client.get(LIST)
    assert column_values(page, "title") == ["A", "B", "C"]
    assert column_values(page, "stored") == ["4", "1", "2"]
    assert column_values(page, "true") == ["2", "1", "3"]
    assert column_values(page, "drift") == [
        '<strong class="drift">+2</strong>',
        "0",
        '<strong class="drift">-1</strong>',
    ]
    assert b"courses/admin.css" in page.content


@pytest.mark.parametrize(
    ("order", "titles"),
    [
        (f"{STORED}", "BCA"),
        (f"-{STORED}", "ACB"),
        (f"{TRUE}", "BAC"),
        (f"-{TRUE}", "CAB"),
        (f"{DRIFT}", "CBA"),
        (f"-{DRIFT}", "ABC"),
    ],
)
def test_the_list_sorts_by_each_count(
    staff_client: Client, drifted_courses: list[Course], order: str, titles: str
) -> None:
    assert column_values(staff_client.get(LIST, {"o": order}), "title") == list(titles)


def test_the_filter_drifted_now_counts_live(
    staff_client: Client, drifted_courses: list[Course]
) -> None:
    assert b'<a href="?drifted=yes">Drifted now</a>' in staff_client.get(LIST).content
    assert column_values(staff_client.get(LIST, {"drifted": "yes"}), "title") == ["A", "C"]
    add_drift(drifted_courses[1], +1)
    add_drift(drifted_courses[0], -2)
    assert column_values(staff_client.get(LIST, {"drifted": "yes"}), "title") == ["B", "C"]


def test_the_filter_drifted_at_the_last_check_shows_unresolved_discrepancies(
    staff_client: Client, drifted_courses: list[Course]
) -> None:
    list(run_audit(kind=CountRun.Kind.CHECK, actor="test"))
    add_drift(drifted_courses[1], +1)
    page = staff_client.get(LIST, {"drifted": "last-check"})
    assert column_values(page, "title") == ["A", "C"]
    # The counts in the list are those of now.
    add_drift(drifted_courses[0], -2)
    page = staff_client.get(LIST, {"drifted": "last-check"})
    assert column_values(page, "drift") == ["0", '<strong class="drift">-1</strong>']


@pytest.mark.parametrize("query", ["", "drifted=yes", f"o={DRIFT}", f"drifted=yes&o=-{TRUE}&q=c"])
def test_the_number_of_queries_does_not_grow_with_the_list(
    staff_client: Client, make_course: Make, make_students: Make, repair_counts: None, query: str
) -> None:
    def add_courses(number: int) -> None:
        for n in range(number):
            slug = f"s{Subject.objects.count()}"
            course = make_course(subject=Subject.objects.create(name=slug, slug=slug))
            enroll_many(course=course, students=make_students(n % 3))
            add_drift(course, 1)

    def count_queries() -> int:
        staff_client.get(f"{LIST}?{query}")  # The first request also fills caches.
        with CaptureQueriesContext(connection) as queries:
            page = staff_client.get(f"{LIST}?{query}")
        assert len(column_values(page, "title")) == Course.objects.count()
        return len(queries)

    add_courses(2)
    queries = count_queries()
    add_courses(20)
    assert count_queries() == queries


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", [LIST, f"{LIST}?drifted=yes", f"{LIST}?o=-{DRIFT}"])
def test_the_list_shows_a_change_that_bypasses_django_at_once(
    staff_client: Client, course: Course, repair_counts: None, path: str
) -> None:
    for stored in (5, 6):
        # Cachalot does not notice a query on the driver's own cursor.
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"UPDATE courses_course SET total_enrollments = {stored}")
        page = staff_client.get(path)
        assert column_values(page, "stored") == [str(stored)]
        assert column_values(page, "drift") == [f'<strong class="drift">+{stored}</strong>']


def test_the_subject_filter_offers_the_first_subjects(
    staff_client: Client, make_course: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course_admin, "MAX_SUBJECT_CHOICES", 1)
    art, music = (Subject.objects.create(name=name, slug=name) for name in ("Art", "Music"))
    make_course(title="Drawing", subject=art)
    make_course(title="Singing", subject=music)
    page = staff_client.get(LIST).content.decode()
    assert f"?subject__id__exact={art.pk}" in page
    assert f"?subject__id__exact={music.pk}" not in page
    # The subject list links to the courses of every subject.
    link = f"{LIST}?subject__id__exact={music.pk}"
    assert link in staff_client.get("/admin/courses/subject/").content.decode()
    assert column_values(staff_client.get(link), "title") == ["Singing"]


# Rebuilding --------------------------------------------------------------------------------


def test_the_rebuild_action_reports_its_corrections_in_one_message(
    staff_client: Client, drifted_courses: list[Course]
) -> None:
    page = run_action(staff_client, "rebuild_counts", drifted_courses)
    assert message_texts(page) == ["Corrected 2 courses."]
    page = run_action(staff_client, "rebuild_counts", drifted_courses)
    assert message_texts(page) == ["All counts of the selected courses are correct."]


def test_the_rebuild_action_corrects_only_the_selected_courses(
    staff_client: Client, drifted_courses: list[Course]
) -> None:
    run_action(staff_client, "rebuild_counts", drifted_courses[:2])
    assert drift_by_title() == {"C": -1}


def test_the_rebuild_action_corrects_all_pages_of_a_filter(
    staff_client: Client, make_course: Make, repair_counts: None
) -> None:
    courses = [make_course() for _ in range(60)]
    for course in courses[:55]:
        add_drift(course, 1)
    data = {"action": "rebuild_counts", "index": 0, "select_across": 1}
    page = staff_client.post(
        f"{LIST}?drifted=yes&o={DRIFT}", data | {"_selected_action": courses[0].pk}, follow=True
    )
    assert message_texts(page) == ["Corrected 55 courses."]
    assert drift_by_title() == {}


def test_the_rebuild_action_accepts_a_maximum_of_courses(
    staff_client: Client, drifted_courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_SELECTED", 2)
    page = run_action(staff_client, "rebuild_counts", drifted_courses[:1], index=0, select_across=1)
    assert message_texts(page) == ["Select at most 2 courses."]
    assert drift_by_title() == {"A": 2, "C": -1}


# Saving ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_saving_a_course_keeps_the_counter(
    staff_client: Client, course: Course, make_students: Make
) -> None:
    first_student, second_student = make_students(2)
    path = reverse("admin:courses_course_change", args=[course.pk])
    form = staff_client.get(path).context["adminform"].form
    assert "total_enrollments" not in form.fields
    enroll(student=first_student, course=course)

    def enroll_before_save(**kwargs: Any) -> None:
        run_concurrently(lambda: enroll(student=second_student, course=course))

    pre_save.connect(enroll_before_save, sender=Course)
    try:
        data = {name: form[name].value() or "" for name in form.fields}
        response = staff_client.post(path, data | {"title": "New", "total_enrollments": 7})
    finally:
        pre_save.disconnect(enroll_before_save, sender=Course)
    assert response.status_code == 302
    saved = Course.objects.get()
    assert (saved.title, saved.total_enrollments) == ("New", 2)


def test_a_new_course_has_a_count_of_0(staff_client: Client) -> None:
    assert staff_client.get(ADD).status_code == 200
    staff_client.post(ADD, {"title": "New", "slug": "new", "total_enrollments": 7})
    assert Course.objects.get().total_enrollments == 0


@pytest.mark.parametrize(
    ("code", "is_valid"), [("phys 1", False), ("a\u200bb", False), ("Phýs 1", True), ("", True)]
)
def test_no_two_courses_have_the_same_id(
    staff_client: Client, make_course: Any, code: str, is_valid: bool
) -> None:
    make_course(code="Phys 1")
    make_course(code="")
    response = staff_client.post(ADD, {"title": "New", "slug": "new", "code": code})
    text = response.content.decode()
    assert ("The course ID " in text or "the course ID " in text) == (not is_valid)
    assert Course.objects.filter(slug="new").exists() == is_valid


@pytest.mark.parametrize("code", ["", "Phys 1"])
def test_the_id_in_other_systems_is_optional(staff_client: Client, code: str) -> None:
    assert b"Course ID in other systems" in staff_client.get(ADD).content
    staff_client.post(ADD, {"title": "New", "slug": "new", "code": code})
    assert Course.objects.get().code == code


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_committed", [False, True])
def test_a_lost_connection_during_commit_is_not_retried(
    staff_client: Client, database_proxy: Any, is_committed: bool
) -> None:
    connection.ensure_connection()  # The connection begins with a COMMIT of its own.
    database_proxy.drop_once(b"COMMIT", executes_query=is_committed)
    page = staff_client.post(ADD, {"title": "New", "slug": "new"}, follow=True)
    assert database_proxy.dropped == 1
    assert message_texts(page) == [
        "The database was too busy. Check whether your change was saved before you try again."
    ]
    assert Course.objects.count() == is_committed


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_form_saved_on_the_second_attempt_reports_success_once(
    staff_client: Client, database_proxy: Any
) -> None:
    connection.ensure_connection()
    database_proxy.drop_once(b"INSERT INTO `courses_course`", executes_query=True)
    page = staff_client.post(ADD, {"title": "New", "slug": "new"}, follow=True)
    assert database_proxy.dropped == 1
    (message,) = message_texts(page)
    assert "added successfully" in message
    assert Course.objects.count() == LogEntry.objects.count() == 1


# Deleting a course or a student --------------------------------------------------------------


@pytest.fixture(params=["course", "student"])
def deletion(request: pytest.FixtureRequest, student: Any, course: Course) -> SimpleNamespace:
    """Return a course or a student without enrollments, and the requests that delete it."""
    obj = {"course": course, "student": student}[request.param]
    name = f"{obj._meta.app_label}_{obj._meta.model_name}"
    return SimpleNamespace(
        obj=obj,
        model=type(obj),
        single=(reverse(f"admin:{name}_delete", args=[obj.pk]), {"post": "yes"}),
        selected=(
            reverse(f"admin:{name}_changelist"),
            {"action": "delete_selected", "_selected_action": obj.pk, "post": "yes"},
        ),
        enroll=lambda: enroll(student=student, course=course),
        has_happened=lambda: not type(obj)._default_manager.filter(pk=obj.pk).exists(),
    )


from_page_and_list = pytest.mark.parametrize("way", ["single", "selected"])


@from_page_and_list
def test_an_object_without_enrollments_is_deleted(
    staff_client: Client, deletion: SimpleNamespace, way: str
) -> None:
    path, data = getattr(deletion, way)
    page = staff_client.post(path, data, follow=True)
    assert "uccessfully" in message_texts(page)[0]
    assert deletion.has_happened()
    assert LogEntry.objects.get().is_deletion()


@from_page_and_list
def test_an_object_with_withdrawn_enrollments_is_not_deleted(
    staff_client: Client, student: Any, course: Course, deletion: SimpleNamespace, way: str
) -> None:
    path, data = getattr(deletion, way)
    if way == "single":
        confirmation = staff_client.get(path)
    else:
        confirmation = staff_client.post(path, {k: v for k, v in data.items() if k != "post"})
    assert "Yes, I’m sure" in confirmation.content.decode()
    deletion.enroll()
    unenroll(student=student, course=course)

    page = staff_client.post(path, data)
    assert page.status_code == 200
    html = page.content.decode()
    assert "Cannot delete" in html
    assert f"<li>enrollments of {deletion.obj}</li>" in html
    assert "Yes, I’m sure" not in html
    assert not deletion.has_happened()
    assert not LogEntry.objects.exists()


@from_page_and_list
def test_a_rejected_deletion_reads_no_enrollments(
    staff_client: Client,
    make_students: Make,
    make_course: Make,
    student: Any,
    course: Course,
    deletion: SimpleNamespace,
    way: str,
) -> None:
    deletion.enroll()
    enroll_many(course=course, students=make_students(10))
    for other in [make_course() for _ in range(10)]:
        enroll(student=student, course=other)
    instances = []

    def record(instance: Enrollment, **kwargs: Any) -> None:
        instances.append(instance)

    path, data = getattr(deletion, way)
    post_init.connect(record, sender=Enrollment)
    try:
        page = staff_client.post(path, data)
    finally:
        post_init.disconnect(record, sender=Enrollment)
    assert f"<li>enrollments of {deletion.obj}</li>" in page.content.decode()
    assert instances == []


@pytest.mark.django_db(transaction=True)
@from_page_and_list
def test_an_enrollment_added_after_the_confirmation_prevents_the_deletion(
    staff_client: Client, deletion: SimpleNamespace, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_admin = admin.site.get_model_admin(deletion.model)
    get_deleted_objects = model_admin.get_deleted_objects

    def get_deleted_objects_then_enroll(*args: Any) -> Any:
        result = get_deleted_objects(*args)
        run_concurrently(deletion.enroll)
        return result

    monkeypatch.setattr(model_admin, "get_deleted_objects", get_deleted_objects_then_enroll)
    path, data = getattr(deletion, way)
    response = staff_client.post(path, data)
    monkeypatch.undo()
    assert_nothing_deleted(staff_client.get(response.url), deletion)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@from_page_and_list
def test_an_enrollment_added_during_the_deletion_prevents_it(
    staff_client: Client, deletion: SimpleNamespace, way: str
) -> None:
    def enroll_before_delete(**kwargs: Any) -> None:
        run_concurrently(deletion.enroll)

    # Django has collected the objects to delete, so only the foreign key prevents it.
    pre_delete.connect(enroll_before_delete, sender=deletion.model)
    path, data = getattr(deletion, way)
    try:
        response = staff_client.post(path, data)
    finally:
        pre_delete.disconnect(enroll_before_delete, sender=deletion.model)
    assert_nothing_deleted(staff_client.get(response.url), deletion)


def assert_nothing_deleted(page: HttpResponse, deletion: SimpleNamespace) -> None:
    assert message_texts(page) == [
        "Nothing was changed, because related rows changed just now. Try again."
    ]
    assert not deletion.has_happened()
    assert not LogEntry.objects.exists()
    if connection.vendor != "sqlite":
        assert Enrollment.objects.count() == 1


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@from_page_and_list
def test_a_deletion_is_retried_after_a_conflict(
    staff_client: Client, deletion: SimpleNamespace, short_lock_timeout: None, way: str
) -> None:
    path, data = getattr(deletion, way)
    with locked_past_the_timeout(deletion.obj):
        page = staff_client.post(path, data, follow=True)
    assert len(message_texts(page)) == 1
    assert deletion.has_happened()
    assert LogEntry.objects.get().is_deletion()


# Permissions -------------------------------------------------------------------------------


def test_view_permission_alone_allows_no_change(
    client: Client, drifted_courses: list[Course]
) -> None:
    sign_in_staff(client, "view_course")
    page = client.get(LIST)
    assert column_values(page, "drift")[1] == "0"
    assert b"rebuild_counts" not in page.content
    assert b"delete_selected" not in page.content
    for action in ("rebuild_counts", "delete_selected"):
        run_action(client, action, drifted_courses, post="yes", index=0)
    assert drift_by_title() == {"A": 2, "C": -1}

    change = reverse("admin:courses_course_change", args=[drifted_courses[0].pk])
    assert client.get(change).status_code == 200
    data = {"title": "New", "slug": "new"}
    assert client.post(change, data).status_code == 403
    delete = reverse("admin:courses_course_delete", args=[drifted_courses[0].pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
    assert client.post(ADD, data).status_code == 403
    assert list(Course.objects.order_by("pk").values_list("title", flat=True)) == ["A", "B", "C"]


def test_change_permission_allows_rebuilding_but_not_deleting(
    client: Client, drifted_courses: list[Course]
) -> None:
    sign_in_staff(client, "view_course", "change_course")
    page = client.get(LIST)
    assert b"rebuild_counts" in page.content
    assert b"delete_selected" not in page.content
    run_action(client, "rebuild_counts", drifted_courses, index=0)
    assert drift_by_title() == {}


def test_staff_without_permissions_see_no_courses(
    client: Client, drifted_courses: list[Course]
) -> None:
    sign_in_staff(client)
    assert client.get(LIST).status_code == 403
    run_action(client, "rebuild_counts", drifted_courses, index=0)
    assert drift_by_title() == {"A": 2, "C": -1}
