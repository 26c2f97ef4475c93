"""Students whose primary keys are integers, UUIDs or texts.

These tests use the user model of the settings. `test_user_models.py` runs them with others.
"""

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client

from courses.models import Course
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.services import enroll, enroll_many, erase_student, leave, transfer, unenroll_many
from tests.support.counts import drift_by_title
from tests.support.enrollments import MakeCourse, MakeStudents

User = get_user_model()
USERS = f"/admin/{User._meta.app_label}/{User._meta.model_name}/"
ENROLLMENTS = "/admin/enrollments/enrollment/"
EVENTS = "/admin/enrollments/enrollmentevent/"


def test_columns_have_the_type_of_the_key(db: None) -> None:
    def column_type(model: Any, name: str) -> Any:
        with connection.cursor() as cursor:
            table = model._meta.db_table
            description = connection.introspection.get_table_description(cursor, table)
        (column,) = [column for column in description if column.name == name]
        return column.type_code, column.display_size

    key_type = column_type(User, User._meta.pk.column)
    for model in (Enrollment, EnrollmentEvent):
        assert column_type(model, "student_id") == key_type


def test_instance_key_and_text_are_the_same_student(make_course: MakeCourse, student: Any) -> None:
    course, other_course = make_course(), make_course()
    for form in (str(student.pk), student, student.pk):
        enrollment, _ = enroll(student=form, course=course)
        assert enrollment.student_id == student.pk
        assert enroll_many(course=course, students=[form, student]).unchanged == 1
    assert Enrollment.objects.get().student == student
    transfer(student=str(student.pk), source=course, target=other_course)
    assert unenroll_many(course=other_course, students=[str(student.pk)]).withdrawn == 1
    assert set(EnrollmentEvent.objects.values_list("student", flat=True)) == {student.pk}
    assert erase_student(student=str(student.pk)) == 2
    assert drift_by_title() == {}


@pytest.mark.parametrize("is_enrolled", [False, True])
@pytest.mark.parametrize(
    "similar_text",
    [
        lambda text: f"{text} ",
        lambda text: f" {text}",
        lambda text: text.upper() if text.upper() != text else f"0{text}",
        lambda text: text.replace("u", "ü") if "u" in text else text.replace("-", "") + "_0",
    ],
    ids=["trailing space", "leading space", "upper case", "accent"],
)
def test_similar_texts_are_not_the_key(
    course: Course, make_students: MakeStudents, is_enrolled: bool, similar_text: Any
) -> None:
    """MariaDB considers most of these equal, if the key is a text."""
    student, other_student = make_students(2)
    if is_enrolled:
        enroll(student=student, course=course)
    key = similar_text(str(student.pk))
    rows = list(Enrollment.objects.values())
    for call in (
        lambda: enroll(student=key, course=course),
        lambda: leave(student=key, course=course),
        lambda: enroll_many(course=course, students=[other_student, key]),
        lambda: unenroll_many(course=course, students=[key]),
        lambda: erase_student(student=key),
    ):
        with pytest.raises(User.DoesNotExist):
            call()
    assert list(Enrollment.objects.values()) == rows
    assert drift_by_title() == {}


def test_pages_can_be_opened(
    staff_client: Client, make_course: MakeCourse, make_students: MakeStudents
) -> None:
    course, other_course = make_course(), make_course()
    student = make_students(2)[0]
    transfer_from, _ = enroll(student=student, course=course)
    transfer(student=student, source=course, target=other_course)
    user_page, enrollment_page = f"{USERS}{student.pk}/", f"{ENROLLMENTS}{transfer_from.pk}/"
    autocomplete = "/admin/autocomplete/?term=s&app_label"
    for url in (
        *("/", course.get_absolute_url(), "/my-courses/", "/admin/"),
        *(USERS, f"{USERS}?q=s", f"{USERS}add/"),
        *(f"{user_page}{page}/" for page in ("change", "password", "history", "delete")),
        *(ENROLLMENTS, f"{ENROLLMENTS}?q=s", f"{ENROLLMENTS}?student__pk__exact={student.pk}"),
        *(f"{ENROLLMENTS}add/?student={student.pk}", f"{enrollment_page}change/"),
        *(f"{enrollment_page}history/", EVENTS, f"{EVENTS}?student__pk__exact={student.pk}"),
        f"{EVENTS}{EnrollmentEvent.objects.last().pk}/change/",
        f"/admin/courses/course/add/?instructor={student.pk}",
        f"{autocomplete}=enrollments&model_name=enrollment&field_name=student",
        f"{autocomplete}=courses&model_name=course&field_name=instructor",
    ):
        assert staff_client.get(url).status_code == 200, url
    events = staff_client.get(f"{EVENTS}?student__pk__exact={student.pk}")
    assert events.context["cl"].title == f"Enrollment events: {student}"


def test_the_admin_enrolls_and_withdraws(
    staff_client: Client, course: Course, student: Any
) -> None:
    staff_client.post(f"{ENROLLMENTS}add/", {"student": student.pk, "course": course.pk})
    enrollment = Enrollment.objects.get(student=student)
    assert enrollment.is_counted
    selected = {"action": "withdraw", "_selected_action": [enrollment.pk], "post": "yes"}
    staff_client.post(ENROLLMENTS, selected)
    assert not Enrollment.objects.get().is_counted
    assert drift_by_title() == {}
