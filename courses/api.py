"""The JSON API of the catalog."""

from typing import Annotated, Any

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.utils.http import urlencode
from ninja import Query, Router, Schema
from ninja.errors import HttpError
from pydantic import Field

from courses.catalog import PAGE_SIZE, InvalidCursor, Order, catalog_page
from courses.models import Course, Subject

router = Router(tags=["courses"])


class Problem(Schema):
    """An error. `detail` is a sentence that says why the request failed."""

    detail: str


class SubjectOut(Schema):
    slug: str
    name: str


class CourseOut(Schema):
    """A course with its live enrollment count."""

    slug: str
    title: str
    subject: SubjectOut | None
    instructor: Annotated[str, Field(description="Empty if the course has none.")]
    total_enrollments: Annotated[int, Field(ge=0)]
    capacity: Annotated[int | None, Field(description="Seats. Null if there is no limit.")]
    seats_left: Annotated[
        int | None,
        Field(description="Negative after the capacity was lowered. Null if there is no limit."),
    ]

    @staticmethod
    def resolve_instructor(course: Course) -> str:
        return course.instructor_name


class CoursesOut(Schema):
    courses: list[CourseOut]
    next: Annotated[str | None, Field(description="Path of the next page. Null on the last page.")]


class CoursesQuery(Schema):
    search: Annotated[str, Field(max_length=100, description="Words that the title contains.")] = ""
    subject: Annotated[str, Field(description="Slug of a subject.")] = ""
    order: Order = Order.POPULAR
    after: Annotated[str, Field(description="Cursor. Follow `next` instead of setting it.")] = ""
    size: Annotated[int, Field(ge=1, le=200, description="Courses per page.")] = PAGE_SIZE


@router.get(
    "/courses",
    response={200: CoursesOut, 400: Problem, 404: Problem, 503: Problem},
    operation_id="list_courses",
    summary="List courses",
)
def list_courses(request: HttpRequest, query: Query[CoursesQuery]) -> dict[str, Any]:
    subject = get_object_or_404(Subject, slug=query.subject) if query.subject else None
    try:
        page = catalog_page(**query.dict() | {"subject": subject})
    except InvalidCursor as error:
        raise HttpError(404, str(error)) from error
    next_query = query.dict(exclude_defaults=True) | {"after": page.after}
    return {
        "courses": page.courses,
        "next": f"{request.path}?{urlencode(next_query)}" if page.after else None,
    }


@router.get(
    "/courses/{slug}",
    response={200: CourseOut, 404: Problem, 503: Problem},
    operation_id="read_course",
    summary="Get a course",
)
def read_course(request: HttpRequest, slug: str) -> Course:
    return get_object_or_404(Course.objects.select_related("subject", "instructor"), slug=slug)
