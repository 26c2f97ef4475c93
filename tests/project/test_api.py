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
from tests.support.counts import drift_by_title

Make = Callable[..., Any]


def test_course_with_its_count(client: Client, make_course: Make, make_students: Make) -> None:
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


def test_next_keeps_search_subject_order_and_size(client: Client, make_course: Make) -> None:
    for number in range(7):
        make_course(title=f"Same & {number}")
    art = Subject.objects.create(name="Art", slug="art")
    Course.objects.update(subject=art)
    make_course(title="Same & 7")
    make_course(title="Same as others", subject=art)
    path, titles = "/api/courses?search=same+%26&subject=art&order=title&size=3", []
    while path:
        page = client.get(path).json()
        titles += [course["title"] for course in page["courses"]]
        path = page["next"]
    assert titles == [f"Same & {number}" for number in range(7)]


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("size=0", 400, "size: Input should be greater than or equal to 1"),
        ("order=x", 400, "order: Input should be 'popular', 'newest' or 'title'"),
        ("after=x", 404, "The cursor 'x' does not belong to this order."),
        ("subject=x", 404, "Not Found"),
    ],
)
def test_invalid_query_is_explained(
    client: Client, db: None, query: str, status: int, detail: str
) -> None:
    response = client.get(f"/api/courses?{query}")
    assert (response.status_code, detail in response.json()["detail"]) == (status, True)


def test_enroll_and_leave_are_idempotent(
    student_client: Client, course: Course, student: Any
) -> None:
    path = f"/api/courses/{course.slug}/enrollment"
    responses = [student_client.put(path), student_client.put(path)]
    assert [response.status_code for response in responses] == [201, 200]
    assert responses[0].json() == responses[1].json()
    assert responses[0].json()["status"] == "active"
    assert Enrollment.objects.get().student == student
    assert [student_client.delete(path).status_code for _ in range(2)] == [204, 204]
    assert student_client.put(path).status_code == 201
    assert drift_by_title() == {}


def test_enroll_in_a_full_course_is_409(
    student_client: Client, make_course: Make, make_students: Make
) -> None:
    course = make_course(title="Wanted", capacity=1)
    enroll(student=make_students(1)[0], course=course)
    response = student_client.put(f"/api/courses/{course.slug}/enrollment")
    assert response.status_code == 409
    assert response.json()["detail"].startswith("“Wanted” is full")


@pytest.mark.parametrize("method", ["put", "delete"])
class TestRejectedRequests:
    def test_anonymous_request_is_401(self, course: Course, method: str) -> None:
        client = Client(enforce_csrf_checks=True)
        response = getattr(client, method)(f"/api/courses/{course.slug}/enrollment")
        assert (response.status_code, response.json()) == (401, {"detail": "Unauthorized"})

    def test_request_without_csrf_token_is_403(
        self, course: Course, student: Any, method: str
    ) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(student)
        response = getattr(client, method)(f"/api/courses/{course.slug}/enrollment")
        assert (response.status_code, response.json()) == (403, {"detail": "CSRF check Failed"})
        client.cookies["csrftoken"] = "t" * 32
        response = getattr(client, method)(
            f"/api/courses/{course.slug}/enrollment", headers={"X-CSRFToken": "t" * 32}
        )
        assert response.status_code in (201, 204)

    @pytest.mark.parametrize("slug", ["none", "a%2Fb", "%00", "ü"])
    def test_unknown_course_is_404(self, student_client: Client, method: str, slug: str) -> None:
        response = getattr(student_client, method)(f"/api/courses/{slug}/enrollment")
        assert (response.status_code, list(response.json())) == (404, ["detail"])


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("client_role", "slug"), [("visitor", ""), ("student", "free"), ("student", "full")]
)
def test_every_response_matches_the_openapi_document(
    live_server: Any,
    make_course: Make,
    make_students: Make,
    client: Client,
    tmp_path: Path,
    client_role: str,
    slug: str,
) -> None:
    student, other = make_students(2)
    make_course(slug="free")
    enroll(student=other, course=make_course(slug="full", capacity=1))
    cookies = {"csrftoken": "t" * 32}
    if client_role == "student":
        client.force_login(student)
        cookies["sessionid"] = client.cookies["sessionid"].value
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'[parameters]\n"path.slug" = "{slug}"\n' if slug else "")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config),
            *("run", f"{live_server.url}/api/openapi.json", "--max-examples", "10", "--seed", "1"),
            *("--header", f"Cookie: {'; '.join(map('='.join, cookies.items()))}"),
            *("--header", f"X-CSRFToken: {cookies['csrftoken']}"),
            # This check omits the session, but the header above adds it again.
            *(["--exclude-checks", "negative_data_rejection"] if client_role == "student" else []),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert drift_by_title() == {}


@pytest.mark.django_db(transaction=True)
def test_client_generated_from_the_openapi_document_works(
    live_server: Any, client: Client, student: Any, course: Course, tmp_path: Path
) -> None:
    document, config = tmp_path / "openapi.json", tmp_path / "config.yml"
    document.write_bytes(client.get("/api/openapi.json").content)
    config.write_text("post_hooks: []\n")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate"),
            *("--path", document, "--config", config, "--meta", "none"),
            *("--output-path", tmp_path / "generated", "--fail-on-warning"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    client.force_login(student)
    script = f"""
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
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["active", "1", "204"], result.stderr
