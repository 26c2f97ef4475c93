"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    rounds: int
    writers: dict[int, int]  # number of processes: students that each enrolls
    growth: tuple[int, ...]  # rows that the courses have
    growth_rounds: int
    growth_calls: int  # a round; a fifth of it of the signal, which takes long
    many: int  # students of one call
    one_by_one: int  # of these, those who are enrolled one by one
    courses: int  # that are checked and rebuilt
    rows: int  # in them
    catalog: int  # courses
    pages: int  # a round
    lines_by_row: int  # of the imported file, those that are imported row by row


SIZES = {
    "small": Size(
        rounds=3,
        writers={1: 250, 8: 40, 16: 25},
        growth=(10, 1_000, 100_000),
        growth_rounds=15,
        growth_calls=10,
        many=20_000,
        one_by_one=400,
        courses=1_000,
        rows=400_000,
        catalog=50_000,
        pages=20,
        lines_by_row=800,
    ),
    "large": Size(
        rounds=5,
        writers={1: 1_000, 8: 150, 16: 100},
        growth=(10, 10_000, 1_000_000),
        growth_rounds=30,
        growth_calls=10,
        many=20_000,
        one_by_one=2_000,
        courses=5_000,
        rows=2_000_000,
        catalog=1_000_000,
        pages=20,
        lines_by_row=3_000,
    ),
}
