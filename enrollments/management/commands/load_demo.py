import random
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS, transaction
from django.template.defaultfilters import pluralize
from django.utils.text import slugify

from courses.management.base import AppCommand, positive_int
from courses.models import Course, Subject
from enrollments.history import Origin
from enrollments.models import Enrollment
from enrollments.services import enroll_many, set_status, unenroll_many

User = get_user_model()

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
            "--students",
            metavar="NUMBER",
            type=positive_int,
            default=3_000,
            help="default: %(default)s",
        )

    @transaction.atomic
    def handle(self, *, students: int, **options: Any) -> None:
        if not settings.DEBUG:
            raise self.usage_error(
                "Demo data includes an account with a well-known password. Set DEBUG=1 to load it."
            )
        if Course.objects.using(DEFAULT_DB_ALIAS).exists():
            return
        rng = random.Random(1)  # the same data every time
        student_ids = _create_users(
            [User(username=f"student{n:04}") for n in range(1, students + 1)]
        )
        courses = _create_courses(rng)
        with self.progress(total=len(courses), unit="course") as bar:
            for rank, course in enumerate(courses, start=1):
                # As in real catalogs, a few courses have most of the students.
                applicants = rng.sample(student_ids, k=max(1, students * 6 // (rank * 10)))
                _enroll_applicants(rng, course, applicants)
                bar.update()
        self.stdout.write(
            f"Demo data: {len(courses)} courses, {students} student{pluralize(students)}."
        )
        if not User.objects.using(DEFAULT_DB_ALIAS).filter(username=ADMIN_NAME).exists():
            User.objects.create_superuser(username=ADMIN_NAME, password=ADMIN_PASSWORD)
            self.stdout.write(
                f"Sign in to /admin/ as {ADMIN_NAME} with the password {ADMIN_PASSWORD}."
            )


def _create_users(users: list[Any]) -> list[Any]:
    """Save users, unless their names are taken, and return the primary keys of these names."""
    for user in users:
        user.set_unusable_password()
    User.objects.bulk_create(users, batch_size=1_000, ignore_conflicts=True)
    names = [user.username for user in users]
    saved = User.objects.using(DEFAULT_DB_ALIAS).only("username")
    by_name = saved.in_bulk(names, field_name="username")
    return [by_name[name].pk for name in names]


def _create_courses(rng: random.Random) -> list[Course]:
    instructors = []
    for name in INSTRUCTORS:
        first, last = name.split()
        instructors.append(User(username=slugify(name), first_name=first, last_name=last))
    instructor_ids = _create_users(instructors)
    courses = []
    for name, topics in SUBJECTS.items():
        subject, _ = Subject.objects.get_or_create(name=name, defaults={"slug": slugify(name)})
        for title in (level.format(topic) for topic in topics for level in LEVELS):
            course = Course(title=title, slug=slugify(title), subject=subject)
            course.instructor_id = rng.choice(instructor_ids)
            courses.append(course)
    rng.shuffle(courses)
    for rank, course in enumerate(courses, start=1):
        # Without a limit, the first courses become much larger than the others.
        course.capacity = rng.choice([None, None, 20, 50, 100, 400]) if rank > 5 else None
        course.save()
    return courses


def _enroll_applicants(rng: random.Random, course: Course, applicants: list[Any]) -> None:
    """Enroll applicants, withdraw an eighth of them, and let a twentieth complete the course."""
    rejected = enroll_many(course=course, students=applicants, origin=ORIGIN).rejected
    leaving = rng.sample(applicants, k=len(applicants) // 8)
    unenroll_many(course=course, students=leaving, origin=ORIGIN)
    enroll_many(course=course, students=rejected, origin=ORIGIN)
    counted = Enrollment.objects.using(DEFAULT_DB_ALIAS).filter(course=course).counted()
    enrollments = list(counted.order_by("pk"))
    for row in rng.sample(enrollments, k=len(enrollments) // 20):
        set_status(
            student=row.student_id,
            course=course,
            status=Enrollment.Status.COMPLETED,
            origin=ORIGIN,
        )
