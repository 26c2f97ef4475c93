-- Finds and corrects drifted course counts, for the mariadb or mysql client, while
-- the site stays busy:
--
--     mariadb --table DATABASE < enrollments/sql/rebuild_counts.sql
--
-- Needs SELECT and UPDATE on courses_course, SELECT on enrollments_enrollment, and CREATE
-- TEMPORARY TABLES. It can be run again at any time: what is right is neither locked nor
-- written. On an error the client stops, and the server undoes what was begun: run it
-- again. (On a Galera cluster that may be 1213, when others write through another node.)

DROP TEMPORARY TABLE IF EXISTS rebuild_counts_drifted;
CREATE TEMPORARY TABLE rebuild_counts_drifted (
    course_id BIGINT NOT NULL PRIMARY KEY,
    stored BIGINT NOT NULL
) ENGINE = InnoDB;

-- 1. Look. Under READ COMMITTED this locks none of the rows that it reads, and one
--    statement sees rows and counters as of one moment.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

INSERT INTO rebuild_counts_drifted (course_id, stored)
SELECT seen.id, seen.stored
FROM (
    SELECT
        course.id,
        CAST(course.total_enrollments AS SIGNED) AS stored,
        (
            SELECT COUNT(*)
            FROM enrollments_enrollment AS enrollment
            WHERE enrollment.course_id = course.id
                AND enrollment.status IN ('active', 'completed')
        ) AS counted
    FROM courses_course AS course
) AS seen
WHERE seen.stored <> seen.counted;

SELECT COUNT(*) AS drifted_before FROM rebuild_counts_drifted;

COMMIT;

-- 2. Lock what looked wrong, in key order, as every other writer does. Count only then,
--    in another statement: its snapshot is newer than the locks, so that nobody can have
--    enrolled between the count and the correction. Without the locks nothing is
--    corrected, even by a client that goes on after errors.
SET @rebuild_counts_locked = 0;
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

SELECT COUNT(*) INTO @rebuild_counts_locked
FROM rebuild_counts_drifted AS drifted
STRAIGHT_JOIN courses_course AS course FORCE INDEX (PRIMARY) ON course.id = drifted.course_id
FOR UPDATE;

UPDATE rebuild_counts_drifted AS drifted
STRAIGHT_JOIN courses_course AS course FORCE INDEX (PRIMARY) ON course.id = drifted.course_id
SET drifted.stored = course.total_enrollments;

UPDATE rebuild_counts_drifted AS drifted
STRAIGHT_JOIN courses_course AS course FORCE INDEX (PRIMARY) ON course.id = drifted.course_id
SET course.total_enrollments = (
    SELECT COUNT(*)
    FROM enrollments_enrollment AS enrollment
    WHERE enrollment.course_id = drifted.course_id
        AND enrollment.status IN ('active', 'completed')
)
WHERE @rebuild_counts_locked > 0;

SELECT
    course.id AS corrected_course,
    course.title,
    drifted.stored,
    course.total_enrollments AS `true`,
    drifted.stored - CAST(course.total_enrollments AS SIGNED) AS drift
FROM rebuild_counts_drifted AS drifted
JOIN courses_course AS course ON course.id = drifted.course_id
WHERE drifted.stored <> CAST(course.total_enrollments AS SIGNED)
ORDER BY course.id;

COMMIT;

DROP TEMPORARY TABLE rebuild_counts_drifted;

-- 3. Verify. 0 is right. Others may have drifted since, if their cause still writes.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

SELECT COUNT(*) AS drifted_after
FROM (
    SELECT
        CAST(course.total_enrollments AS SIGNED) AS stored,
        (
            SELECT COUNT(*)
            FROM enrollments_enrollment AS enrollment
            WHERE enrollment.course_id = course.id
                AND enrollment.status IN ('active', 'completed')
        ) AS counted
    FROM courses_course AS course
) AS seen
WHERE seen.stored <> seen.counted;

COMMIT;
