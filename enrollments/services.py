"""The services: the only way to write enrollments and to move the counters of their courses.

Every service is one transaction. It changes row, counter and history together or not at all, and
locks the course before the rows of the course. Called inside a caller's `atomic()`, a service
joins that transaction. Called outside, it retries conflicts and lost connections itself. All
services are idempotent, so callers can repeat any call.

`student` and `course` are an instance or a primary key. `origin` says for the history who
requested the change, and through which part of the site. All services raise
`Course.DoesNotExist` or the user model's `DoesNotExist` for a missing course or student, and
`django.db.OperationalError` if the database stays busy or unreachable after all retries: try
again later. Inside a caller's `atomic()` such an error is raised at once, and the caller's
transaction must be repeated.
"""

from collections.abc import Iterable

from django.db.models import Model

from courses.models import Course
from enrollments import transitions, writing
from enrollments.history import Origin, make_context
from enrollments.keys import course_key, student_key, student_keys
from enrollments.models import Enrollment
from enrollments.results import BulkResult, CourseCompleted, CourseFull, NotEnrolled, Outcome
from enrollments.transitions import Registration

__all__ = [
    "BulkResult",
    "CourseCompleted",
    "CourseFull",
    "NotEnrolled",
    "Outcome",
    "Registration",
    "enroll",
    "enroll_many",
    "erase_student",
    "leave",
    "register_many",
    "set_status",
    "transfer",
    "unenroll",
    "unenroll_many",
]

SYSTEM = Origin()


def enroll(
    *, student: Model | int, course: Course | int, origin: Origin = SYSTEM
) -> tuple[Enrollment, bool]:
    """Enroll a student. Return the enrollment, and whether this call moved the counter.

    Reactivates a withdrawn enrollment, and leaves a counted one unchanged. Raises CourseFull.
    """
    context = make_context(origin)
    result = writing.enroll_student(student_key(student), course_key(course), context)
    assert result.enrollment is not None
    return result.enrollment, result.is_changed


def unenroll(*, student: Model | int, course: Course | int, origin: Origin = SYSTEM) -> bool:
    """Withdraw a student, and return whether this call did so.

    Keeps the row, with the status `withdrawn`. Returns False if the student was not counted.
    """
    context = make_context(origin)
    withdraw = transitions.withdraw(context.created_at)
    return writing.apply_transition(
        student_key(student), course_key(course), withdraw, context
    ).is_changed


def leave(*, student: Model | int, course: Course | int, origin: Origin = SYSTEM) -> bool:
    """Withdraw students on their own request, and return whether this call did so.

    Like `unenroll()`, but raises CourseCompleted for a completed enrollment.
    """
    context = make_context(origin)
    withdraw = transitions.withdraw_unless_completed(context.created_at)
    return writing.apply_transition(
        student_key(student), course_key(course), withdraw, context
    ).is_changed


def set_status(
    *, student: Model | int, course: Course | int, status: str, origin: Origin = SYSTEM
) -> bool:
    """Change the status of an enrollment, and return whether this call changed it.

    Raises NotEnrolled if there is no row, CourseFull if a withdrawn row would count again and
    the course has no free seat, and ValueError for an unknown status.
    """
    context = make_context(origin)
    change = transitions.change_status(status, context.created_at)
    result = writing.apply_transition(student_key(student), course_key(course), change, context)
    if result.enrollment is None:
        raise NotEnrolled("The student has no enrollment in this course. Call enroll() first.")
    return result.is_changed


def transfer(
    *,
    student: Model | int,
    source: Course | int,
    target: Course | int,
    origin: Origin = SYSTEM,
) -> tuple[Enrollment, bool]:
    """Move an active enrollment to another course.

    Returns the enrollment in `target`, and whether this call moved it. The row in `source` is
    kept, with the status `withdrawn`. Returns False if nothing is active in `source` and the
    student is counted in `target` already.

    Raises NotEnrolled if there is nothing to move, CourseFull if `target` has no free seat, and
    ValueError if both are the same course. Nothing is changed then.
    """
    source_id, target_id = course_key(source), course_key(target)
    if source_id == target_id:
        raise ValueError("source and target are the same course.")
    context = make_context(origin)
    result = writing.transfer_student(student_key(student), source_id, target_id, context)
    assert result.enrollment is not None
    return result.enrollment, result.is_changed


def enroll_many(
    *,
    course: Course | int,
    students: Iterable[Model | int],
    chunk_size: int | None = None,
    outcomes: bool = False,
    origin: Origin = SYSTEM,
) -> BulkResult:
    """Enroll students in the given order until the course is full, and reject the others.

    Without `chunk_size`, all students are one transaction, which locks the course until it
    ends. With it, every chunk of that many students is a transaction: others can enroll and
    leave in between and may take the last seats. After an error or a crash the earlier chunks
    stay committed, and the same call again enrolls the remaining students. Inside a caller's
    `atomic()`, the caller's transaction locks the course and is rolled back as a whole.

    `outcomes=True` returns the outcome of each student as well. Raises ValueError for a
    `chunk_size` below 1.
    """
    context = make_context(origin)
    activate = transitions.activate(context.created_at)
    by_student = dict.fromkeys(student_keys(students), activate)
    result = writing.apply_in_chunks(course_key(course), by_student, context, chunk_size)
    return BulkResult.from_outcomes(result, include_outcomes=outcomes)


def unenroll_many(
    *,
    course: Course | int,
    students: Iterable[Model | int],
    chunk_size: int | None = None,
    outcomes: bool = False,
    origin: Origin = SYSTEM,
) -> BulkResult:
    """Withdraw students, and leave those who are not counted unchanged.

    `chunk_size` and `outcomes` work as in `enroll_many()`.
    """
    context = make_context(origin)
    withdraw = transitions.withdraw(context.created_at)
    by_student = dict.fromkeys(student_keys(students), withdraw)
    result = writing.apply_in_chunks(course_key(course), by_student, context, chunk_size)
    return BulkResult.from_outcomes(result, include_outcomes=outcomes)


def register_many(
    *,
    course: Course | int,
    registrations: Iterable[Registration],
    chunk_size: int | None = None,
    outcomes: bool = False,
    origin: Origin = SYSTEM,
) -> BulkResult:
    """Write rows with given statuses and dates, for records that another system keeps.

    The last registration of a student is used. Free seats go to students in the given order.
    `chunk_size` and `outcomes` work as in `enroll_many()`. Raises ValueError if a status is
    unknown, or if a status and its dates contradict each other.
    """
    context = make_context(origin)
    by_student = {
        student_key(registration.student): transitions.register(registration, context.created_at)
        for registration in registrations
    }
    result = writing.apply_in_chunks(course_key(course), by_student, context, chunk_size)
    return BulkResult.from_outcomes(result, include_outcomes=outcomes)


def erase_student(*, student: Model | int, origin: Origin = SYSTEM) -> int:
    """Delete all enrollments of a student with their history, and return their number.

    For deletion requests: the user can be deleted afterwards. One event per row remains, which
    says that the enrollment of this user ID was erased.
    """
    student_id = student_key(student)
    while True:
        # Repeats only if the student was enrolled in one more course in the meantime.
        erased = writing.try_to_erase(student_id, make_context(origin))
        if erased is not None:
            return erased.number
