import random
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management.base import CommandParser
from django.db import IntegrityError, transaction
from django.utils.text import slugify

from courses.management.base import AppCommand
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
NAME = PASSWORD = "admin"
ORIGIN = Origin(actor="load_demo")


class Command(AppCommand):
    help = (
        "Fills an empty database with a demo catalog, made through the services, and a "
        f"superuser {NAME}. Does nothing where there are courses. For trying only: needs DEBUG."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
        parser.add_argument("--students", type=int, default=3_000, help="default: %(default)s")

    def handle(self, *, seed: int, students: int, **options: Any) -> None:
        if not settings.DEBUG:
            raise self.usage_error("Demo data has a well-known password: set DEBUG=1 to load it.")
        if students < 1:
            raise self.usage_error(f"--students takes whole numbers from 1 on, not {students}.")
        try:
            self._load(random.Random(seed), students)
        except IntegrityError as error:
            raise self.usage_error(
                f"The demo data clashes with what is there ({error.args[-1]}): nothing was loaded."
            ) from error
        admin = get_user_model().objects.filter(username=NAME).first()
        if admin is not None and admin.check_password(PASSWORD):
            self.stdout.write(f"Sign in to /admin/ as {NAME} with the password {PASSWORD}.")

    @transaction.atomic
    def _load(self, rng: random.Random, number: int) -> None:
        if Course.objects.exists():
            return
        users = get_user_model()._default_manager
        if not users.filter(username=NAME).exists():
            users.create_superuser(username=NAME, password=PASSWORD)
        usernames = [f"student{n:04}" for n in range(1, number + 1)]
        users.bulk_create(
            [users.model(username=name, password=make_password(None)) for name in usernames],
            batch_size=1_000,
            ignore_conflicts=True,
        )
        made = users.only("username").in_bulk(usernames, field_name="username")
        students = [made[name].pk for name in usernames]
        courses = self._courses(rng)
        with self.progress(total=len(courses), unit="course") as bar:
            for rank, course in enumerate(courses, start=1):
                # As in real catalogs, a few courses have most of the students.
                wanting = rng.sample(students, k=max(1, len(students) * 6 // (rank * 10)))
                self._fill(rng, course, wanting)
                bar.update()
        self.stdout.write(f"Demo data: {len(courses)} courses, {len(students)} students.")

    def _courses(self, rng: random.Random) -> list[Course]:
        instructors = self._instructors()
        courses = []
        for name, fields in SUBJECTS.items():
            subject, _ = Subject.objects.get_or_create(slug=slugify(name), defaults={"name": name})
            for title in (level.format(field) for field in fields for level in LEVELS):
                instructor = rng.choice(instructors)
                courses.append(
                    Course(
                        title=title,
                        slug=slugify(title),
                        subject=subject,
                        instructor=instructor,
                    )
                )
        rng.shuffle(courses)
        for rank, course in enumerate(courses, start=1):
            # The first ones take everybody: seats would make all courses alike.
            course.capacity = rng.choice([None, None, 20, 50, 100, 400]) if rank > 5 else None
            course.save()
        return courses

    def _instructors(self) -> list[Any]:
        users = get_user_model()._default_manager
        made = []
        for name in INSTRUCTORS:
            first, last = name.split()
            named = {"first_name": first, "last_name": last, "password": make_password(None)}
            made.append(users.get_or_create(username=slugify(name), defaults=named)[0])
        return made

    def _fill(self, rng: random.Random, course: Course, wanting: list[int]) -> None:
        refused = enroll_many(course=course, students=wanting, origin=ORIGIN).rejected
        leaving = rng.sample(wanting, k=len(wanting) // 8)
        unenroll_many(course=course, students=leaving, origin=ORIGIN)
        enroll_many(course=course, students=refused, origin=ORIGIN)
        staying = Enrollment.objects.filter(course=course).counted().order_by("pk")
        for row in rng.sample(list(staying), k=staying.count() // 20):
            set_status(
                student=row.student_id,
                course=course,
                status=Enrollment.Status.COMPLETED,
                origin=ORIGIN,
            )
