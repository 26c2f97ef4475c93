"""A made-up Canvas enrollments.csv of any size, one row in a hundred bad.

    python -m benchmarks.canvas_file --rows 1000000 > enrollments.csv

What an import into an empty database must make of it is printed on standard error, as JSON.
"""

import argparse
import json
import sys
from collections import Counter
from typing import BinaryIO

HEADER = b"course_id,user_id,role,section_id,status\n"
STUDENTS_A_COURSE = 1_000
COURSES_A_STUDENT = 10
# Each takes its turn as the row in a hundred.
BAD = [
    "{course},{user},student,{section},asleep\n",
    "{course},{user},student\n",
    "{course},,student,{section},active\n",
    "{course},{user}!,student,{section},active\n",
    ",{user},student,{section},active\n",
    '{course},"{user},student,{section},active\n',
    "{course},{user},student,{section}\udce9,active\n",  # not UTF-8
]


def write(file: BinaryIO, *, rows: int) -> dict[str, int]:
    """Write a file of so many rows after its header; return what an import must count."""
    courses = max(1, rows // STUDENTS_A_COURSE)
    students = max(rows // COURSES_A_STUDENT, STUDENTS_A_COURSE * 2)
    expected: Counter[str] = Counter(rows=rows)
    file.write(HEADER)
    for number in range(rows):
        # In no order of courses, and no student twice in one.
        course, place = number % courses, number // courses
        kind = (course + place) % 100
        row = {
            "course": f"COURSE-{course:05}",
            "user": f"u{(place + course * 37) % students:07}",
            "section": f"COURSE-{course:05}-{number % 3}",
        }
        if kind == 99:
            line = BAD[expected["rejected"] % len(BAD)].format(**row)
            outcome = "rejected"
        elif kind == 50:
            line = "{course},{user},teacher,{section},active\n".format(**row)
            outcome = "passed_over"
        else:
            status = {0: "completed", 10: "deleted", 20: "inactive"}.get(kind, "active")
            line = "{course},{user},student,{section},{status}\n".format(**row, status=status)
            outcome = "created"
            expected["counted"] += status in ("active", "completed")
        expected[outcome] += 1
        file.write(line.encode(errors="surrogateescape"))
    return dict(expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    json.dump(write(sys.stdout.buffer, rows=parser.parse_args().rows), sys.stderr)
