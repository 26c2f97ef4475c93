import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from courses.models import Course, Subject
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many
from tests.conftest import drifts

Make = Callable[..., Any]


def test_a_course_and_its_count(client: Client, make_course: Make, make_students: Make) -> None:
    art = Subject.objects.create(name="Art", slug="art")
    course = make_course(title="Drawing", slug="drawing", subject=art, capacity=20)
    enroll_many(course=course, students=make_students(3))
    drawing = {
        "slug": "drawing",
        "title": "Drawing",
        "subject": {"slug": "art", "name": "Art"},
        "instructor": "",
        "total_enrollments": 3,
        "capacity": 20,
        "seats_left": 17,
    }
    assert client.get("/api/courses/drawing").json() == drawing
    assert client.get("/api/courses").json() == {"courses": [drawing], "next": None}
    assert client.get("/api/").json()["courses"] == "/api/courses"


def test_the_list_is_searched_sorted_and_paged(client: Client, make_course: Make) -> None:
    for number in range(7):
        make_course(title=f"Same & {number}")
    art = Subject.objects.create(name="Art", slug="art")
    Course.objects.update(subject=art)
    make_course(title="Same & 7")
    make_course(title="Same as others", subject=art)
    address, titles = "/api/courses?search=same+%26&subject=art&order=title&size=3", []
    while address:
        page = client.get(address).json()
        titles += [course["title"] for course in page["courses"]]
        address = page["next"]
    assert titles == [f"Same & {number}" for number in range(7)]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("size=0", 400, "size: Input should be greater than or equal to 1"),
        ("order=x", 400, "order: Input should be 'popular', 'newest' or 'title'"),
        ("after=x", 404, "There is no position 'x' in this order."),
        ("subject=x", 404, "Not Found"),
    ],
)
def test_what_is_refused_is_a_sentence(
    client: Client, db: None, query: str, status: int, said: str
) -> None:
    answer = client.get(f"/api/courses?{query}")
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True)


def test_enrolling_and_leaving_are_idempotent(
    signed_in: Client, course: Course, student: Any
) -> None:
    address = f"/api/courses/{course.slug}/enrollment"
    answers = [signed_in.put(address), signed_in.put(address)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["status"] == "active"
    assert Enrollment.objects.get().student == student
    assert [signed_in.delete(address).status_code for _ in range(2)] == [204, 204]
    assert signed_in.put(address).status_code == 201
    assert drifts() == {}


def test_a_full_course(signed_in: Client, make_course: Make, make_students: Make) -> None:
    course = make_course(title="Wanted", capacity=1)
    enroll(student=make_students(1)[0], course=course)
    answer = signed_in.put(f"/api/courses/{course.slug}/enrollment")
    assert answer.status_code == 409
    assert answer.json() == {"detail": "“Wanted” is full: all 1 seats are taken."}


@pytest.mark.parametrize("method", ["put", "delete"])
class TestRefused:
    def test_who_is_not_signed_in(self, course: Course, method: str) -> None:
        client = Client(enforce_csrf_checks=True)
        answer = getattr(client, method)(f"/api/courses/{course.slug}/enrollment")
        assert (answer.status_code, answer.json()) == (401, {"detail": "Unauthorized"})

    def test_other_sites(self, course: Course, student: Any, method: str) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(student)
        answer = getattr(client, method)(f"/api/courses/{course.slug}/enrollment")
        assert (answer.status_code, answer.json()) == (403, {"detail": "CSRF check Failed"})
        client.cookies["csrftoken"] = "t" * 32
        answer = getattr(client, method)(
            f"/api/courses/{course.slug}/enrollment", headers={"X-CSRFToken": "t" * 32}
        )
        assert answer.status_code in (201, 204)

    @pytest.mark.parametrize("slug", ["none", "a%2Fb", "%00", "ü"])
    def test_a_course_that_is_not_there(self, signed_in: Client, method: str, slug: str) -> None:
        answer = getattr(signed_in, method)(f"/api/courses/{slug}/enrollment")
        assert (answer.status_code, list(answer.json())) == (404, ["detail"])


# Whatever the description allows, and more ---------------------------------------


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("who", "slug"), [("visitor", ""), ("student", "free"), ("student", "full")]
)
def test_no_answer_is_outside_the_description(
    live_server: Any,
    make_course: Make,
    make_students: Make,
    client: Client,
    tmp_path: Path,
    who: str,
    slug: str,
) -> None:
    one, two = make_students(2)
    make_course(slug="free")
    enroll(student=two, course=make_course(slug="full", capacity=1))
    cookies = {"csrftoken": "t" * 32}
    if who == "student":
        client.force_login(one)
        cookies["sessionid"] = client.cookies["sessionid"].value
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'[parameters]\n"path.slug" = "{slug}"\n' if slug else "")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config),
            *("run", f"{live_server.url}/api/openapi.json", "--max-examples", "10", "--seed", "1"),
            *("--header", f"Cookie: {'; '.join(map('='.join, cookies.items()))}"),
            *("--header", f"X-CSRFToken: {cookies['csrftoken']}"),
            # What it leaves out, the headers above put back: a student is never without a session.
            *(["--exclude-checks", "negative_data_rejection"] if who == "student" else []),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert drifts() == {}


@pytest.mark.django_db(transaction=True)
def test_a_client_that_is_generated_from_the_description_works(
    live_server: Any, client: Client, student: Any, course: Course, tmp_path: Path
) -> None:
    description, config = tmp_path / "openapi.json", tmp_path / "config.yml"
    description.write_bytes(client.get("/api/openapi.json").content)
    config.write_text("post_hooks: []\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate"),
            *("--path", description, "--config", config, "--meta", "none"),
            *("--output-path", tmp_path / "generated", "--fail-on-warning"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client.force_login(student)
    use = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from generated import Client
from generated.api.courses import list_courses
from generated.api.enrollment import enroll, leave
cookies = {{"sessionid": {client.cookies["sessionid"].value!r}, "csrftoken": "t" * 32}}
client = Client({live_server.url!r}, cookies=cookies, headers={{"X-CSRFToken": "t" * 32}})
print(enroll.sync({course.slug!r}, client=client).status)
print(list_courses.sync(client=client).courses[0].total_enrollments)
print(leave.sync_detailed({course.slug!r}, client=client).status_code)
"""
    said = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True)
    assert said.stdout.split() == ["active", "1", "204"], said.stderr
