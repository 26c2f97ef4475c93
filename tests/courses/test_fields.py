from collections.abc import Callable

import pytest
from django.core import serializers
from django.core.exceptions import FieldError
from django.db.models import F
from django.forms import modelform_factory

from courses.models import Course


def stored(course: Course) -> int:
    return Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)


@pytest.fixture
def stale(course: Course) -> Course:
    """An instance that was read before others moved the counter to 7."""
    Course.objects.update(total_enrollments=F("total_enrollments") + 7)
    assert course.total_enrollments == 0
    return course


def test_a_new_course_starts_at_0_whatever_is_given(db: None) -> None:
    course = Course.objects.create(title="A", slug="a", total_enrollments=5)
    assert (course.total_enrollments, stored(course)) == (0, 0)
    (course,) = Course.objects.bulk_create([Course(title="B", slug="b", total_enrollments=5)])
    assert stored(Course.objects.get(slug="b")) == 0


@pytest.mark.parametrize(
    "save",
    [
        lambda course: course.save(),
        lambda course: course.save(update_fields=["title", "total_enrollments"]),
        lambda course: course.save(force_update=True),
        lambda course: Course.objects.update_or_create(
            slug=course.slug, defaults={"title": "New", "total_enrollments": 1}
        ),
        lambda course: Course.objects.bulk_update([course], ["title"]),
        lambda course: Course(pk=course.pk, title="New", slug=course.slug).save(),
    ],
    ids=["save", "update_fields", "force_update", "update_or_create", "bulk_update", "by key"],
)
def test_no_stale_instance_overwrites_the_counter(
    stale: Course, save: Callable[[Course], object]
) -> None:
    stale.title = "New"
    save(stale)
    assert stored(stale) == 7
    assert Course.objects.get().title == "New"


def test_no_model_form_has_the_counter(stale: Course) -> None:
    form_class = modelform_factory(Course, fields="__all__")
    assert "total_enrollments" not in form_class.base_fields
    form = form_class({"title": "New", "slug": stale.slug, "total_enrollments": 1}, instance=stale)
    form.save()
    assert stored(stale) == 7


@pytest.mark.parametrize(
    "write",
    [
        lambda course: Course.objects.bulk_update([course], ["total_enrollments"]),
        lambda course: Course.objects.bulk_create(
            [course],
            update_conflicts=True,
            update_fields=["total_enrollments"],
            unique_fields=["slug"],
        ),
        lambda course: Course.objects.bulk_create(
            [course], None, False, True, ["total_enrollments"], ["slug"]
        ),
    ],
    ids=["bulk_update", "bulk_create", "bulk_create by position"],
)
def test_naming_the_counter_in_a_bulk_write_is_refused(
    stale: Course, write: Callable[[Course], object]
) -> None:
    with pytest.raises(FieldError, match="rebuild_counts"):
        write(stale)
    assert stored(stale) == 7


def test_fixtures_are_loaded_as_written(course: Course) -> None:
    Course.objects.update(total_enrollments=7)
    text = serializers.serialize("json", Course.objects.all())
    Course.objects.all().delete()
    for loaded in serializers.deserialize("json", text):
        loaded.save()
    assert stored(course) == 7


def test_a_row_written_by_sql_starts_at_0(db: None) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO courses_course (title, slug) VALUES ('A', 'a')")
    assert stored(Course.objects.get()) == 0
