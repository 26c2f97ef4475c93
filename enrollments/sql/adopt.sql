-- Copy the courses and enrollments of an older system into this project's tables, with the
-- mariadb or mysql client. Both systems' tables are in one database, and both use auth_user (see
-- docs/adoption.md):
--
--     mariadb --table DATABASE < enrollments/sql/adopt.sql
--
-- The script can be run at any time and repeated. It leaves adopted rows unchanged, and it only
-- reads the old tables. The table adopt_report lists what was not adopted, or was changed, with
-- the reason.
--
-- Required privileges: CREATE, CREATE VIEW, CREATE ROUTINE, ALTER ROUTINE, DROP, SELECT, INSERT and
-- DELETE on the database, and UPDATE on courses_course.

SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET SESSION sql_mode = 'STRICT_TRANS_TABLES', sql_safe_updates = 0, sql_big_selects = 1;

-- 1. The meaning of the old tables. ADAPT THIS PART, and nothing below it.

CREATE OR REPLACE VIEW adopt_course AS
SELECT
    id,
    title  -- name
FROM core_course;

CREATE OR REPLACE VIEW adopt_enrollment AS
SELECT
    id,
    student_id,  -- user_id
    course_id,
    CASE LOWER(TRIM(status))  -- IF(is_active, 'active', 'withdrawn')
        WHEN 'active' THEN 'active'
        WHEN 'enrolled' THEN 'active'
        WHEN 'completed' THEN 'completed'
        WHEN 'dropped' THEN 'withdrawn'
        WHEN 'withdrawn' THEN 'withdrawn'
        WHEN 'cancelled' THEN 'withdrawn'
    END AS status,  -- NULL: the row is reported and not adopted
    created_at,  -- in UTC, as Django stores it; CONVERT_TZ(created_at, 'Europe/London', 'UTC')
    CAST(NULL AS DATETIME) AS ended_at  -- the date of the withdrawal, if it is known
FROM core_enrollments;

-- 2. Courses keep their ids. Their counts start at 0; the old counts are ignored.

DROP TABLE IF EXISTS adopt_report;
CREATE TABLE adopt_report (
    kind VARCHAR(10) NOT NULL,
    old_id BIGINT NOT NULL,
    reason VARCHAR(100) NOT NULL,
    PRIMARY KEY (kind, old_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4;

DROP TABLE IF EXISTS adopt_candidate;
CREATE TABLE adopt_candidate (PRIMARY KEY (id)) ENGINE = InnoDB
SELECT id, title, slug FROM courses_course WHERE FALSE;  -- also with its collations

INSERT INTO adopt_candidate (id, title, slug)
SELECT
    old.id,
    LEFT(old.title, 200) AS title,
    -- The id makes the slug unique. It also identifies the course when the script is repeated.
    CONCAT(
        COALESCE(NULLIF(TRIM(BOTH '-' FROM REGEXP_REPLACE(
            -- Without case, [a-z] would also match letters such as the long s.
            LEFT(LOWER(CONVERT(old.title USING utf8mb4)), 150) COLLATE utf8mb4_bin,
            '[^a-z0-9]+',
            '-'
        )), ''), 'course'),
        '-', old.id
    ) AS slug
FROM adopt_course AS old
WHERE TRIM(COALESCE(old.title, '')) <> '';

INSERT INTO courses_course (id, title, slug, total_enrollments)
SELECT candidate.id, candidate.title, candidate.slug, 0
FROM adopt_candidate AS candidate
WHERE NOT EXISTS (SELECT 1 FROM courses_course AS existing WHERE existing.id = candidate.id)
    AND NOT EXISTS (SELECT 1 FROM courses_course AS existing WHERE existing.slug = candidate.slug);

-- If another course already has the id, neither that course nor its enrollments are changed.
DELETE candidate FROM adopt_candidate AS candidate
LEFT JOIN courses_course AS existing
    ON existing.id = candidate.id AND existing.slug = candidate.slug
WHERE existing.id IS NULL;

INSERT INTO adopt_report (kind, old_id, reason)
SELECT 'course', old.id,
    IF(TRIM(COALESCE(old.title, '')) = '', 'no title', 'another course has this id')
FROM adopt_course AS old
LEFT JOIN adopt_candidate AS candidate ON candidate.id = old.id
WHERE candidate.id IS NULL;

INSERT INTO adopt_report (kind, old_id, reason)
SELECT 'title', old.id, 'shortened to 200 characters'
FROM adopt_course AS old
JOIN adopt_candidate AS candidate ON candidate.id = old.id
WHERE CHAR_LENGTH(old.title) > 200;

-- 3. Enrollments, one course per transaction: lock the course, insert its rows, then set its
--    counter in a separate statement, as the services do. Rows and counter commit together.

DROP PROCEDURE IF EXISTS adopt_enrollments;
DELIMITER //
CREATE PROCEDURE adopt_enrollments()
BEGIN
    DECLARE current_id BIGINT DEFAULT 0;
    DECLARE now_utc DATETIME(6) DEFAULT UTC_TIMESTAMP(6);

    next_course: LOOP
        SET current_id = (SELECT MIN(id) FROM adopt_candidate WHERE id > current_id);
        IF current_id IS NULL THEN
            LEAVE next_course;
        END IF;
        START TRANSACTION;
        SELECT id INTO @adopt_locked FROM courses_course WHERE id = current_id FOR UPDATE;
        -- Several rows of one student become one row. It is active if any of them is active,
        -- otherwise completed if any is completed, and it has the earliest date.
        INSERT INTO enrollments_enrollment
            (student_id, course_id, status, enrollment_date, withdrawal_date)
        SELECT
            student_id,
            current_id,
            status,
            enrolled_at,
            IF(status = 'withdrawn', GREATEST(COALESCE(ended_at, enrolled_at), enrolled_at), NULL)
        FROM (
            SELECT
                old.student_id,
                CASE
                    WHEN SUM(old.status = 'active') > 0 THEN 'active'
                    WHEN SUM(old.status = 'completed') > 0 THEN 'completed'
                    ELSE 'withdrawn'
                END AS status,
                COALESCE(MIN(NULLIF(old.created_at, '0000-00-00')), now_utc) AS enrolled_at,
                MAX(old.ended_at) AS ended_at
            FROM adopt_enrollment AS old
            JOIN auth_user AS student ON student.id = old.student_id
            WHERE old.course_id = current_id AND old.status IS NOT NULL
            GROUP BY old.student_id
        ) AS merged
        WHERE NOT EXISTS (
            SELECT 1 FROM enrollments_enrollment AS existing
            WHERE existing.student_id = merged.student_id AND existing.course_id = current_id
        );
        IF ROW_COUNT() > 0 THEN
            UPDATE courses_course
            SET total_enrollments = (
                SELECT COUNT(*) FROM enrollments_enrollment
                WHERE course_id = current_id AND status IN ('active', 'completed')
            )
            WHERE id = current_id;
        END IF;
        COMMIT;
    END LOOP;
END//
DELIMITER ;
CALL adopt_enrollments();
DROP PROCEDURE adopt_enrollments;

-- 4. Report every old row that was not adopted or was changed. The totals at the end add up to
--    the number of old rows.

INSERT INTO adopt_report (kind, old_id, reason)
SELECT 'enrollment', old.id,
    CASE
        WHEN old.status IS NULL THEN 'unknown status'
        WHEN student.id IS NULL THEN 'student does not exist'
        ELSE 'course does not exist or was not adopted'
    END
FROM adopt_enrollment AS old
LEFT JOIN auth_user AS student ON student.id = old.student_id
LEFT JOIN adopt_candidate AS candidate ON candidate.id = old.course_id
WHERE old.status IS NULL OR student.id IS NULL OR candidate.id IS NULL;

INSERT INTO adopt_report (kind, old_id, reason)
SELECT 'enrollment', old.id, 'merged with another row of the same student and course'
FROM adopt_enrollment AS old
JOIN (
    SELECT valid.student_id, valid.course_id, MIN(valid.id) AS first_id
    FROM adopt_enrollment AS valid
    LEFT JOIN adopt_report AS rejected
        ON rejected.kind = 'enrollment' AND rejected.old_id = valid.id
    WHERE rejected.old_id IS NULL
    GROUP BY valid.student_id, valid.course_id
    HAVING COUNT(*) > 1
) AS duplicates
    ON duplicates.student_id = old.student_id AND duplicates.course_id = old.course_id
LEFT JOIN adopt_report AS rejected ON rejected.kind = 'enrollment' AND rejected.old_id = old.id
WHERE rejected.old_id IS NULL AND old.id <> duplicates.first_id;

INSERT INTO adopt_report (kind, old_id, reason)
SELECT 'date', old.id, 'missing: set to now, unless a merged row has a date'
FROM adopt_enrollment AS old
LEFT JOIN adopt_report AS rejected ON rejected.kind = 'enrollment' AND rejected.old_id = old.id
WHERE rejected.old_id IS NULL AND NULLIF(old.created_at, '0000-00-00') IS NULL;

SELECT kind, reason, COUNT(*) AS number, MIN(old_id) AS first_id
FROM adopt_report
GROUP BY kind, reason
ORDER BY kind, reason;

SELECT
    (SELECT COUNT(*) FROM adopt_course) AS old_courses,
    (SELECT COUNT(*) FROM adopt_candidate) AS adopted_courses,
    (SELECT COUNT(*) FROM adopt_enrollment) AS old_rows,
    (SELECT COUNT(*) FROM adopt_report WHERE kind = 'enrollment') AS reported,
    (
        SELECT COUNT(*) FROM enrollments_enrollment AS enrollment
        WHERE EXISTS (
            SELECT 1 FROM adopt_enrollment AS old
            WHERE old.student_id = enrollment.student_id AND old.course_id = enrollment.course_id
        )
    ) AS adopted_rows;

DROP TABLE adopt_candidate;
DROP VIEW adopt_course, adopt_enrollment;
