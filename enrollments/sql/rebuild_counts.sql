-- Find and correct drifted course counts with the mariadb or mysql client. The site can stay
-- online:
--
--     mariadb --table DATABASE < enrollments/sql/rebuild_counts.sql
--
-- Required privileges: SELECT and UPDATE on courses_course, SELECT on enrollments_enrollment,
-- and CREATE TEMPORARY TABLES on the database.
--
-- The script can be run at any time and repeated. It neither locks nor writes courses whose
-- count is correct. On an error the client stops and the server rolls back: run the script
-- again. On a Galera cluster, writes on another node can cause error 1213.

-- A client with --safe-updates would reject statements below and shorten the report.
SET @rebuild_counts_safe_updates = @@SESSION.sql_safe_updates,
    @rebuild_counts_big_selects = @@SESSION.sql_big_selects,
    @rebuild_counts_select_limit = @@SESSION.sql_select_limit;
SET SESSION sql_safe_updates = 0, sql_big_selects = 1, sql_select_limit = DEFAULT;

DROP TEMPORARY TABLE IF EXISTS rebuild_counts_drifted;
CREATE TEMPORARY TABLE rebuild_counts_drifted (
    course_id BIGINT NOT NULL PRIMARY KEY,
    stored_count BIGINT NOT NULL
) ENGINE = InnoDB;
COMMIT;  -- Without autocommit, a transaction has begun.

-- 1. Find drifted courses. READ COMMITTED locks none of the rows that the SELECT reads, and one
--    statement reads rows and counters from the same snapshot.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

INSERT INTO rebuild_counts_drifted (course_id, stored_count)
SELECT counts.course_id, counts.stored_count
FROM (
    SELECT
        course.id AS course_id,
        CAST(course.total_enrollments AS SIGNED) AS stored_count,
        (
            SELECT COUNT(*)
            FROM enrollments_enrollment AS enrollment
            WHERE enrollment.course_id = course.id
                AND enrollment.status IN ('active', 'completed')
        ) AS true_count
    FROM courses_course AS course
) AS counts
WHERE counts.stored_count <> counts.true_count;

SELECT COUNT(*) AS drifted_before FROM rebuild_counts_drifted;

COMMIT;

-- 2. Lock the drifted courses in primary-key order, like every other writer. Then count in a
--    separate statement, whose snapshot is newer than the locks: nobody can enroll between the
--    count and the correction. @rebuild_counts_locked stays 0 if locking fails, so that a client
--    that continues after errors (--force) corrects nothing.
SET @rebuild_counts_locked = 0;
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

SELECT COUNT(*) INTO @rebuild_counts_locked
FROM rebuild_counts_drifted AS drifted
STRAIGHT_JOIN courses_course AS course FORCE INDEX (PRIMARY) ON course.id = drifted.course_id
FOR UPDATE;

UPDATE rebuild_counts_drifted AS drifted
STRAIGHT_JOIN courses_course AS course FORCE INDEX (PRIMARY) ON course.id = drifted.course_id
SET drifted.stored_count = course.total_enrollments;

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
    drifted.stored_count AS `stored`,
    course.total_enrollments AS `true`,
    drifted.stored_count - CAST(course.total_enrollments AS SIGNED) AS drift
FROM rebuild_counts_drifted AS drifted
JOIN courses_course AS course ON course.id = drifted.course_id
WHERE drifted.stored_count <> CAST(course.total_enrollments AS SIGNED)
ORDER BY course.id;

COMMIT;

-- 3. Verify. The result is 0 unless something outside the services still writes to the tables.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
START TRANSACTION;

SELECT COUNT(*) AS drifted_after
FROM (
    SELECT
        CAST(course.total_enrollments AS SIGNED) AS stored_count,
        (
            SELECT COUNT(*)
            FROM enrollments_enrollment AS enrollment
            WHERE enrollment.course_id = course.id
                AND enrollment.status IN ('active', 'completed')
        ) AS true_count
    FROM courses_course AS course
) AS counts
WHERE counts.stored_count <> counts.true_count;

COMMIT;

DROP TEMPORARY TABLE rebuild_counts_drifted;
SET SESSION sql_safe_updates = @rebuild_counts_safe_updates,
    sql_big_selects = @rebuild_counts_big_selects,
    sql_select_limit = @rebuild_counts_select_limit;
