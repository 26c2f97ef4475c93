import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection, transaction
from django.db.models import F
from django.db.models.signals import post_init, pre_delete, pre_save
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from courses.counts.drift import rebuild
from courses.models import Course, Subject
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, unenroll
from tests.conftest import drifts
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]
LIST = "/admin/courses/course/"
# Numbers of the columns, as the links that sort by them have it.
STORED, TRUE, DRIFT = 2, 3, 4


@pytest.fixture(autouse=True)
def no_drift_afterwards(db: None) -> Any:
    yield
    assert drifts() == {}


@pytest.fixture
def repaired(db: None) -> Any:
    """For tests that damage counts: they are put right before drift is looked for."""
    yield
    list(rebuild())


def damage(course: Course, by: int) -> None:
    Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + by)


def column(response: HttpResponse, name: str) -> list[str]:
    cells = re.findall(
        rf'<t[dh] class="field-{name}[^"]*">(.*?)</t[dh]>', response.content.decode()
    )
    return [re.sub(r"</?a.*?>", "", cell) for cell in cells]


def texts(response: HttpResponse) -> list[str]:
    """The messages above a page."""
    return [str(message) for message in response.context["messages"]]


def select(client: Client, action: str, courses: list[Any], **more: Any) -> HttpResponse:
    keys = [course.pk for course in courses]
    data = {"action": action, "_selected_action": keys, **more}
    return client.post(LIST, data, follow=True)


# The list --------------------------------------------------------------------------


@pytest.fixture
def three(make_course: Make, make_students: Make, repaired: None) -> list[Course]:
    """A too high by 2, B right, C too low by 1."""
    courses = [make_course(title=title, slug=title.lower()) for title in "ABC"]
    for course, students in zip(courses, (2, 1, 3), strict=True):
        enroll_many(course=course, students=make_students(students))
    damage(courses[0], +2)
    damage(courses[2], -1)
    return courses


def test_the_list_shows_stored_true_and_drift(staff_client: Client, three: list[Course]) -> None:
    page = staff_client.get(LIST)
    assert column(page, "title") == ["A", "B", "C"]
    assert column(page, "stored") == ["4", "1", "2"]
    assert column(page, "true") == ["2", "1", "3"]
    assert column(page, "drift") == [
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
    staff_client: Client, three: list[Course], order: str, titles: str
) -> None:
    assert column(staff_client.get(LIST, {"o": order}), "title") == list(titles)


def test_the_filter_keeps_the_drifted(staff_client: Client, three: list[Course]) -> None:
    assert b"?drifted=yes" in staff_client.get(LIST).content
    assert column(staff_client.get(LIST, {"drifted": "yes"}), "title") == ["A", "C"]
    # With the numbers that the link "Show counts" asks for.
    assert "Drifted (2)" in staff_client.get(LIST, {"_facets": "True"}).content.decode()


@pytest.mark.parametrize("query", ["", "drifted=yes", f"o={DRIFT}", f"drifted=yes&o=-{TRUE}&q=c"])
def test_more_courses_need_no_more_queries(
    staff_client: Client, make_course: Make, make_students: Make, repaired: None, query: str
) -> None:
    def add(number: int) -> None:
        for n in range(number):
            slug = f"s{Subject.objects.count()}"
            course = make_course(subject=Subject.objects.create(name=slug, slug=slug))
            enroll_many(course=course, students=make_students(n % 3))
            damage(course, 1)

    def queries() -> int:
        staff_client.get(f"{LIST}?{query}")  # the first time, more may be read and kept
        with CaptureQueriesContext(connection) as captured:
            page = staff_client.get(f"{LIST}?{query}")
        assert len(column(page, "title")) == Course.objects.count()
        return len(captured)

    add(2)
    before = queries()
    add(20)
    assert queries() == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", [LIST, f"{LIST}?drifted=yes", f"{LIST}?o=-{DRIFT}"])
def test_a_change_past_django_shows_at_once(
    staff_client: Client, course: Course, repaired: None, path: str
) -> None:
    for stored in (5, 6):
        # Not even the cache in front of Django's cursors sees this one.
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"UPDATE courses_course SET total_enrollments = {stored}")
        page = staff_client.get(path)
        assert column(page, "stored") == [str(stored)]
        assert column(page, "drift") == [f'<strong class="drift">+{stored}</strong>']


# Rebuilding ------------------------------------------------------------------------


def test_the_action_corrects_the_selected_and_says_what_it_changed(
    staff_client: Client, three: list[Course]
) -> None:
    page = select(staff_client, "rebuild_counts", three[:2])
    assert texts(page) == ["“A” corrected from 4 to 2 (drift +2)."]
    assert drifts() == {"C": -1}
    assert texts(select(staff_client, "rebuild_counts", three[:2])) == [
        "All counts of the selected courses are right."
    ]


def test_the_action_takes_all_pages_of_a_filter(
    staff_client: Client, make_course: Make, repaired: None
) -> None:
    courses = [make_course() for _ in range(60)]
    for course in courses[:55]:
        damage(course, 1)
    page = staff_client.post(
        f"{LIST}?drifted=yes&o={DRIFT}",
        {
            "action": "rebuild_counts",
            "index": 0,
            "select_across": 1,
            "_selected_action": courses[0].pk,
        },
        follow=True,
    )
    assert len(texts(page)) == 21
    assert texts(page)[-1] == "35 more corrected."
    assert drifts() == {}


# Saving ----------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_saving_a_course_leaves_the_counter_to_the_others(
    staff_client: Client, course: Course, make_students: Make
) -> None:
    early, late = make_students(2)
    path = reverse("admin:courses_course_change", args=[course.pk])
    form = staff_client.get(path).context["adminform"].form
    assert "total_enrollments" not in form.fields
    enroll(student=early, course=course)

    def enrol_late(**kwargs: Any) -> None:
        meanwhile(lambda: enroll(student=late, course=course))

    # The course was read before this, and is written after.
    pre_save.connect(enrol_late, sender=Course)
    try:
        data = {name: form[name].value() or "" for name in form.fields}
        answer = staff_client.post(path, data | {"title": "New", "total_enrollments": 7})
    finally:
        pre_save.disconnect(enrol_late, sender=Course)
    assert answer.status_code == 302
    saved = Course.objects.get()
    assert (saved.title, saved.total_enrollments) == ("New", 2)


def test_a_course_is_added_with_a_count_of_0(staff_client: Client) -> None:
    path = reverse("admin:courses_course_add")
    assert staff_client.get(path).status_code == 200
    staff_client.post(path, {"title": "New", "slug": "new", "total_enrollments": 7})
    assert Course.objects.get().total_enrollments == 0


# Deleting what has enrollment rows ----------------------------------------------------


def meanwhile(work: Callable[[], Any]) -> None:
    """Do what another visitor does at this very moment."""
    if connection.vendor == "sqlite":
        # There nobody else gets in: our transaction has the database for itself.
        work()
    else:
        ConcurrentThread(work).start_and_finish()


@pytest.fixture(params=["course", "student"])
def kept(request: pytest.FixtureRequest, student: Any, course: Course) -> SimpleNamespace:
    """A course or a student, without rows as yet, and how they are deleted."""
    obj = {"course": course, "student": student}[request.param]
    name = f"{obj._meta.app_label}_{obj._meta.model_name}"
    return SimpleNamespace(
        obj=obj,
        model=type(obj),
        list=reverse(f"admin:{name}_changelist"),
        single=(reverse(f"admin:{name}_delete", args=[obj.pk]), {"post": "yes"}),
        selected=(
            reverse(f"admin:{name}_changelist"),
            {"action": "delete_selected", "_selected_action": obj.pk, "post": "yes"},
        ),
        enroll=lambda: enroll(student=student, course=course),
        exists=lambda: type(obj)._default_manager.filter(pk=obj.pk).exists(),
    )


both_ways = pytest.mark.parametrize("way", ["single", "selected"])


@both_ways
def test_what_has_no_rows_is_deleted(staff_client: Client, kept: SimpleNamespace, way: str) -> None:
    path, data = getattr(kept, way)
    page = staff_client.post(path, data, follow=True)
    assert "uccessfully" in texts(page)[0]
    assert not kept.exists()
    assert LogEntry.objects.get().is_deletion()


@both_ways
def test_what_has_rows_is_kept_even_where_they_are_withdrawn(
    staff_client: Client, student: Any, course: Course, kept: SimpleNamespace, way: str
) -> None:
    path, data = getattr(kept, way)
    # The rows are added between the question and the answer.
    question = {name: value for name, value in data.items() if name != "post"}
    asked = staff_client.get(path) if way == "single" else staff_client.post(path, question)
    assert "Yes, I’m sure" in asked.content.decode()
    kept.enroll()
    unenroll(student=student, course=course)

    refused = staff_client.post(path, data)
    assert refused.status_code == 200
    text = refused.content.decode()
    assert "Cannot delete" in text
    assert f"{kept.obj}: 1 enrollment row, kept for ever" in text
    assert "Yes, I’m sure" not in text
    assert kept.exists()
    assert not LogEntry.objects.exists()


@both_ways
def test_refusing_reads_no_enrollment_row(
    staff_client: Client,
    make_students: Make,
    make_course: Make,
    student: Any,
    course: Course,
    kept: SimpleNamespace,
    way: str,
) -> None:
    kept.enroll()
    enroll_many(course=course, students=make_students(10))
    for other in [make_course() for _ in range(10)]:
        enroll(student=student, course=other)
    read = []

    def note(instance: Enrollment, **kwargs: Any) -> None:
        read.append(instance)

    path, data = getattr(kept, way)
    post_init.connect(note, sender=Enrollment)
    try:
        page = staff_client.post(path, data)
    finally:
        post_init.disconnect(note, sender=Enrollment)
    assert f"{kept.obj}: 11 enrollment rows, kept for ever" in page.content.decode()
    assert read == []


def test_refusing_many_lists_a_few(staff_client: Client, make_course: Make, student: Any) -> None:
    courses = [make_course() for _ in range(30)]
    for course in courses:
        enroll(student=student, course=course)
    text = select(staff_client, "delete_selected", courses).content.decode()
    assert text.count("1 enrollment row, kept for ever") == 20
    assert "… and more" in text


@pytest.mark.django_db(transaction=True)
@both_ways
def test_rows_added_after_the_last_look_are_not_lost(
    staff_client: Client, kept: SimpleNamespace, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_admin = admin.site.get_model_admin(kept.model)
    look = model_admin.get_deleted_objects

    def look_then_enrol(*args: Any) -> Any:
        found = look(*args)
        meanwhile(kept.enroll)
        return found

    monkeypatch.setattr(model_admin, "get_deleted_objects", look_then_enrol)
    path, data = getattr(kept, way)
    answer = staff_client.post(path, data)
    monkeypatch.undo()
    assert_nothing_deleted(staff_client.get(answer.url), kept)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@both_ways
def test_rows_added_inside_the_deletion_are_not_lost(
    staff_client: Client, kept: SimpleNamespace, way: str
) -> None:
    def enroll(**kwargs: Any) -> None:
        meanwhile(kept.enroll)

    # Django has collected all that it will delete: only the database can say no.
    pre_delete.connect(enroll, sender=kept.model)
    path, data = getattr(kept, way)
    try:
        answer = staff_client.post(path, data)
    finally:
        pre_delete.disconnect(enroll, sender=kept.model)
    assert_nothing_deleted(staff_client.get(answer.url), kept)


def assert_nothing_deleted(page: HttpResponse, kept: SimpleNamespace) -> None:
    assert texts(page) == ["Nothing was deleted: somebody was enrolled meanwhile."]
    assert kept.exists()
    assert not LogEntry.objects.exists()
    if connection.vendor != "sqlite":
        assert Enrollment.objects.count() == 1


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@both_ways
def test_a_conflict_is_tried_again(staff_client: Client, kept: SimpleNamespace, way: str) -> None:
    path, data = getattr(kept, way)
    with held_by_another(kept.obj):
        page = staff_client.post(path, data, follow=True)
    assert len(texts(page)) == 1
    assert not kept.exists()
    assert LogEntry.objects.get().is_deletion()


@contextmanager
def held_by_another(obj: Any) -> Iterator[None]:
    """Somebody holds the row's lock, for longer than we wait."""
    held = threading.Event()

    @transaction.atomic
    def hold() -> None:
        type(obj)._default_manager.select_for_update().get(pk=obj.pk)
        held.set()
        time.sleep(1.5)

    with connection.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 1")
    rival = ConcurrentThread(hold)
    rival.start()
    held.wait(10)
    try:
        yield
    finally:
        rival.finish()
        connection.close()  # and with it, our impatience


# Permissions -------------------------------------------------------------------------


def sign_in(client: Client, *permissions: str) -> None:
    user = get_user_model().objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


def test_who_may_only_view_changes_nothing(client: Client, three: list[Course]) -> None:
    sign_in(client, "view_course")
    page = client.get(LIST)
    assert column(page, "drift")[1] == "0"
    assert b"rebuild_counts" not in page.content
    assert b"delete_selected" not in page.content
    before = drifts()
    for action in ("rebuild_counts", "delete_selected"):
        select(client, action, three, post="yes", index=0)
    assert drifts() == before

    course = three[0]
    change = reverse("admin:courses_course_change", args=[course.pk])
    assert client.get(change).status_code == 200
    data = {"title": "New", "slug": "new"}
    assert client.post(change, data).status_code == 403
    delete = reverse("admin:courses_course_delete", args=[course.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
    assert client.post(reverse("admin:courses_course_add"), data).status_code == 403
    assert list(Course.objects.order_by("pk").values_list("title", flat=True)) == ["A", "B", "C"]


def test_who_may_change_may_rebuild_and_not_delete(client: Client, three: list[Course]) -> None:
    sign_in(client, "view_course", "change_course")
    page = client.get(LIST)
    assert b"rebuild_counts" in page.content
    assert b"delete_selected" not in page.content
    select(client, "rebuild_counts", three, index=0)
    assert drifts() == {}


def test_staff_without_permissions_see_nothing(client: Client, three: list[Course]) -> None:
    sign_in(client)
    assert client.get(LIST).status_code == 403
    select(client, "rebuild_counts", three, index=0)
    assert drifts() == {"A": 2, "C": -1}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("done", [False, True], ids=["before COMMIT", "after COMMIT"])
def test_a_lost_answer_to_commit_is_left_to_the_person(
    staff_client: Client, wire: Any, done: bool
) -> None:
    connection.ensure_connection()  # which says READ COMMITTED
    wire.cut_once(b"COMMIT", after_the_server_did_it=done)
    answer = staff_client.post(
        "/admin/courses/course/add/", {"title": "New", "slug": "new"}, follow=True
    )
    assert wire.cuts == 1
    (said,) = [str(message) for message in answer.context["messages"]]
    assert "look whether your change is there" in said
    assert Course.objects.count() == done


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_form_that_is_saved_at_the_second_attempt_says_so_once(
    staff_client: Client, wire: Any
) -> None:
    connection.ensure_connection()
    wire.cut_once(b"INSERT INTO `courses_course`", after_the_server_did_it=True)
    answer = staff_client.post(
        "/admin/courses/course/add/", {"title": "New", "slug": "new"}, follow=True
    )
    assert wire.cuts == 1
    (said,) = [str(message) for message in answer.context["messages"]]
    assert "added successfully" in said
    assert Course.objects.count() == LogEntry.objects.count() == 1
