import random
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management.base import CommandParser
from django.db import IntegrityError, transaction
from django.utils.text import slugify

from courses.management.base import AppCommand, positive_int
from courses.models import Course, Subject
from enrollments.history import Origin
from enrollments.models import Enrollment
from enrollments.services import enroll_many, set_status, unenroll_many

SUBJECTS = {
    "Computing": ["Programming", "Databases", "Operating Systems", "Networks", "Machine Learning"],
    "Mathematics": ["Algebra", "Calculus", "Statistics", "Graph Theory", "Numerical Methods"],
    "Languages": ["French", "German", "Mandarin", "Latin", "Creative Writing"],
    "Science": ["Physics", "Chemistry", "Astronomy", "Genetics", "Geology"],
    "Society": ["Economics", "Psychology", "Law", "Modern History", "Philosophy"],
    "Arts": ["Drawing", "Photography", "Music Theory", "Film", "Architecture"],
}
LEVELS = ["Introduction to {}", "{} in Practice", "Advanced {}"]
INSTRUCTORS = [
    "Amina Diallo", "Björn Lindqvist", "Chen Wei", "Dolores Ortega", "Emeka Okafor",
    "Fatima Zahra", "Grace Mwangi", "Hiroshi Tanaka", "Ingrid Bauer", "Jamal Haddad",
]  # fmt: skip
ADMIN_NAME = ADMIN_PASSWORD = "admin"
ORIGIN = Origin(actor="load_demo")


class Command(AppCommand):
    help = (
        "Fills an empty database with a demo catalog and creates the superuser "
        f"{ADMIN_NAME}. Does nothing if there are courses already. Needs DEBUG=1."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--seed", metavar="NUMBER", type=int, default=1, help="default: %(default)s"
        )
        parser.add_argument(
            "--students",
            metavar="NUMBER",
            type=positive_int,
            default=3_000,
            help="default: %(default)s",
        )

    def handle(self, *, seed: int, students: int, **options: Any) -> None:
        if not settings.DEBUG:
            raise self.usage_error(
                "Demo data includes an account with a well-known password. Set DEBUG=1 to load it."
            )
        try:
            self._load(random.Random(seed), students)
        except IntegrityError as error:
            raise self.usage_error(
                f"The demo data conflicts with existing data ({error.args[-1]}). Nothing was "
                "loaded. Use an empty database."
            ) from error
        admin = get_user_model().objects.filter(username=ADMIN_NAME).first()
        if admin is not None and admin.check_password(ADMIN_PASSWORD):
            self.stdout.write(
                f"Sign in to /admin/ as {ADMIN_NAME} with the password {ADMIN_PASSWORD}."
            )

    @transaction.atomic
    def _load(self, rng: random.Random, student_count: int) -> None:
        if Course.objects.exists():
            return
        users = get_user_model()._default_manager
        if not users.filter(username=ADMIN_NAME).exists():
            users.create_superuser(username=ADMIN_NAME, password=ADMIN_PASSWORD)
        students = _create_students(student_count)
        courses = _create_courses(rng)
        with self.progress(total=len(courses), unit="course") as bar:
            for rank, course in enumerate(courses, start=1):
                # As in real catalogs, a few courses have most of the students.
                applicants = rng.sample(students, k=max(1, len(students) * 6 // (rank * 10)))
                _enroll_applicants(rng, course, applicants)
                bar.update()
        self.stdout.write(f"Demo data: {len(courses)} courses, {len(students)} students.")


def _create_students(count: int) -> list[Any]:
    """Return the primary keys of new and existing users with the names of demo students."""
    users = get_user_model()._default_manager
    usernames = [f"student{n:04}" for n in range(1, count + 1)]
    users.bulk_create(
        [users.model(username=name, password=make_password(None)) for name in usernames],
        batch_size=1_000,
        ignore_conflicts=True,
    )
    by_name = users.only("username").in_bulk(usernames, field_name="username")
    return [by_name[name].pk for name in usernames]


def _create_courses(rng: random.Random) -> list[Course]:
    instructors = _create_instructors()
    courses = []
    for name, topics in SUBJECTS.items():
        subject, _ = Subject.objects.get_or_create(slug=slugify(name), defaults={"name": name})
        for title in (level.format(topic) for topic in topics for level in LEVELS):
            instructor = rng.choice(instructors)
            courses.append(
                Course(title=title, slug=slugify(title), subject=subject, instructor=instructor)
            )
    rng.shuffle(courses)
    for rank, course in enumerate(courses, start=1):
        # Without a limit, the first courses become much larger than the others.
        course.capacity = rng.choice([None, None, 20, 50, 100, 400]) if rank > 5 else None
        course.save()
    return courses


def _create_instructors() -> list[Any]:
    users = get_user_model()._default_manager
    instructors = []
    for name in INSTRUCTORS:
        first, last = name.split()
        values = {"first_name": first, "last_name": last, "password": make_password(None)}
        instructors.append(users.get_or_create(username=slugify(name), defaults=values)[0])
    return instructors


def _enroll_applicants(rng: random.Random, course: Course, applicants: list[Any]) -> None:
    """Enroll applicants, withdraw an eighth of them, and let a twentieth complete the course."""
    rejected = enroll_many(course=course, students=applicants, origin=ORIGIN).rejected
    leaving = rng.sample(applicants, k=len(applicants) // 8)
    unenroll_many(course=course, students=leaving, origin=ORIGIN)
    enroll_many(course=course, students=rejected, origin=ORIGIN)
    enrollments = list(Enrollment.objects.filter(course=course).counted().order_by("pk"))
    for row in rng.sample(enrollments, k=len(enrollments) // 20):
        set_status(
            student=row.student_id,
            course=course,
            status=Enrollment.Status.COMPLETED,
            origin=ORIGIN,
        )
