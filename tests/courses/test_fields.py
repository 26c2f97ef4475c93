"""CounterField: instances cannot overwrite the counter."""

from collections.abc import Callable

import pytest
from django.core import serializers
from django.core.exceptions import FieldError
from django.db import connection
from django.forms import modelform_factory

from courses.models import Course
from tests.support.enrollments import set_stored_count, stored_count


@pytest.fixture
def stale_course(course: Course) -> Course:
    """An instance that was read before its counter was incremented to 7."""
    set_stored_count(course, 7)
    assert course.total_enrollments == 0
    return course


class TestNewCourse:
    def test_create_starts_at_0(self, db: None) -> None:
        course = Course.objects.create(title="A", slug="a", total_enrollments=5)
        assert course.total_enrollments == 0
        assert stored_count(course) == 0

    def test_bulk_create_starts_at_0(self, db: None) -> None:
        Course.objects.bulk_create([Course(title="B", slug="b", total_enrollments=5)])
        assert stored_count(Course.objects.get()) == 0

    def test_a_row_inserted_by_sql_starts_at_0(self, db: None) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO courses_course (title, slug) VALUES ('A', 'a')")
        assert stored_count(Course.objects.get()) == 0


class TestStaleInstance:
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
        ids=[
            "save",
            "save(update_fields)",
            "save(force_update)",
            "update_or_create",
            "bulk_update",
            "new instance with the same key",
        ],
    )
    def test_saving_keeps_the_stored_count(
        self, stale_course: Course, save: Callable[[Course], object]
    ) -> None:
        stale_course.title = "New"
        save(stale_course)
        assert stored_count(stale_course) == 7
        assert Course.objects.get().title == "New"

    def test_model_forms_exclude_the_counter(self, stale_course: Course) -> None:
        form_class = modelform_factory(Course, fields="__all__")
        assert "total_enrollments" not in form_class.base_fields
        form_data = {"title": "New", "slug": stale_course.slug, "total_enrollments": 1}
        form_class(form_data, instance=stale_course).save()
        assert stored_count(stale_course) == 7

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
        ids=["bulk_update", "bulk_create", "bulk_create with positional arguments"],
    )
    def test_naming_the_counter_in_a_bulk_write_raises_field_error(
        self, stale_course: Course, write: Callable[[Course], object]
    ) -> None:
        with pytest.raises(FieldError, match="rebuild_counts"):
            write(stale_course)
        assert stored_count(stale_course) == 7


def test_fixtures_are_loaded_with_their_counts(course: Course) -> None:
    set_stored_count(course, 7)
    fixture = serializers.serialize("json", Course.objects.all())
    Course.objects.all().delete()
    for deserialized in serializers.deserialize("json", fixture):
        deserialized.save()
    assert stored_count(course) == 7
