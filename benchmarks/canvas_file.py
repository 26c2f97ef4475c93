"""Generate a Canvas enrollments.csv of any size, in which every hundredth row is invalid.

    python -m benchmarks.canvas_file --rows 1000000 > enrollments.csv

The totals that an import into an empty database must report are printed on standard error as
JSON.
"""

import argparse
import json
import sys
from collections import Counter
from typing import BinaryIO

HEADER = b"course_id,user_id,role,section_id,status\n"
STUDENTS_PER_COURSE = 1_000
COURSES_PER_STUDENT = 10
# Used in turn.
INVALID_LINES = [
    "{course},{user},student,{section},asleep\n",
    "{course},{user},student\n",
    "{course},,student,{section},active\n",
    "{course},{user}!,student,{section},active\n",
    ",{user},student,{section},active\n",
    '{course},"{user},student,{section},active\n',
    "{course},{user},student,{section}\udce9,active\n",  # not UTF-8
]


def write(file: BinaryIO, *, rows: int) -> dict[str, int]:
    """Write a header and `rows` rows, and return the totals that an import must report."""
    courses = max(1, rows // STUDENTS_PER_COURSE)
    students = max(rows // COURSES_PER_STUDENT, STUDENTS_PER_COURSE * 2)
    totals: Counter[str] = Counter(rows=rows)
    file.write(HEADER)
    for number in range(rows):
        # The rows are not in the order of courses, and no student is in a course twice.
        course, place = number % courses, number // courses
        percentile = (course + place) % 100
        row = {
            "course": f"COURSE-{course:05}",
            "user": f"u{(place + course * 37) % students:07}",
            "section": f"COURSE-{course:05}-{number % 3}",
        }
        if percentile == 99:
            outcome = "rejected"
            line = INVALID_LINES[totals["rejected"] % len(INVALID_LINES)].format(**row)
        elif percentile == 50:
            outcome = "skipped"
            line = "{course},{user},teacher,{section},active\n".format(**row)
        else:
            outcome = "created"
            status = {0: "completed", 10: "deleted", 20: "inactive"}.get(percentile, "active")
            line = "{course},{user},student,{section},{status}\n".format(**row, status=status)
            totals["counted"] += status in ("active", "completed")
        totals[outcome] += 1
        file.write(line.encode(errors="surrogateescape"))
    return dict(totals)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    json.dump(write(sys.stdout.buffer, rows=parser.parse_args().rows), sys.stderr)
