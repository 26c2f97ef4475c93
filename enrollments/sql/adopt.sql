-- Takes over the courses and enrollments of an older system, for the mariadb client. Both
-- systems' tables are in one database, and users in auth_user (see docs/adoption.md):
--
--     mariadb --table DATABASE < enrollments/sql/adopt.sql
--
-- Can be run again at any time: what is there already is left as it is. What can't be taken
-- stands in the table adopt_report, with the reason. The old tables are only read.
-- Needs CREATE and DROP on the database, SELECT on the old tables, SELECT, INSERT and UPDATE
-- on courses_course and enrollments_enrollment.

SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET SESSION sql_mode = 'STRICT_TRANS_TABLES';

-- 1. What the old tables mean. ADAPT THIS PART, and nothing below it.

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
    END AS status,  -- NULL: the row is not taken, and reported
    created_at,  -- in UTC, as Django keeps it; CONVERT_TZ(created_at, 'Europe/London', 'UTC')
    CAST(NULL AS DATETIME) AS ended_at  -- when they left, where that is known
FROM core_enrollments;

-- 2. Courses, with the ids that they had. Counts begin at 0: the old ones are not looked at.

CREATE TABLE IF NOT EXISTS adopt_report (
    what VARCHAR(10) NOT NULL,
    old_id BIGINT NOT NULL,
    reason VARCHAR(100) NOT NULL,
    PRIMARY KEY (what, old_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4;
DELETE FROM adopt_report;

DROP TABLE IF EXISTS adopt_named;
CREATE TABLE adopt_named (
    id BIGINT NOT NULL PRIMARY KEY,
    title VARCHAR(200) NOT NULL,
    slug VARCHAR(200) NOT NULL
) ENGINE = InnoDB CHARACTER SET utf8mb4
SELECT
    old.id,
    LEFT(old.title, 200) AS title,
    -- The id makes it unique, and tells at the next run that this is the same course.
    CONCAT(
        COALESCE(NULLIF(TRIM(BOTH '-' FROM REGEXP_REPLACE(
            LEFT(LOWER(old.title), 150), '[^a-z0-9]+', '-'
        )), ''), 'course'),
        '-', old.id
    ) AS slug
FROM adopt_course AS old
WHERE TRIM(COALESCE(old.title, '')) <> '';

INSERT INTO courses_course (id, title, slug, total_enrollments)
SELECT named.id, named.title, named.slug, 0
FROM adopt_named AS named
WHERE NOT EXISTS (SELECT 1 FROM courses_course AS there WHERE there.id = named.id)
    AND NOT EXISTS (SELECT 1 FROM courses_course AS there WHERE there.slug = named.slug);

-- What now has the id may be another course: then neither it nor its enrollments are touched.
DELETE named FROM adopt_named AS named
LEFT JOIN courses_course AS there ON there.id = named.id AND there.slug = named.slug
WHERE there.id IS NULL;

INSERT INTO adopt_report (what, old_id, reason)
SELECT 'course', old.id,
    IF(TRIM(COALESCE(old.title, '')) = '', 'no title', 'another course has this id')
FROM adopt_course AS old
LEFT JOIN adopt_named AS named ON named.id = old.id
WHERE named.id IS NULL;

INSERT INTO adopt_report (what, old_id, reason)
SELECT 'title', old.id, 'cut to 200 characters'
FROM adopt_course AS old
JOIN adopt_named AS named ON named.id = old.id
WHERE CHAR_LENGTH(old.title) > 200;

-- 3. Enrollments, a course at a time: lock the course, write its rows, then set its counter in
--    a statement of its own, as the services do. Row and counter are committed together.

DELIMITER //
BEGIN NOT ATOMIC
    DECLARE one BIGINT DEFAULT 0;
    DECLARE now_utc DATETIME(6) DEFAULT UTC_TIMESTAMP(6);

    next_course: LOOP
        SET one = (SELECT MIN(id) FROM adopt_named WHERE id > one);
        IF one IS NULL THEN
            LEAVE next_course;
        END IF;
        START TRANSACTION;
        SELECT id INTO @adopt_locked FROM courses_course WHERE id = one FOR UPDATE;
        -- Of several rows of one student: they are in if one of the rows is, since the first.
        INSERT INTO enrollments_enrollment
            (student_id, course_id, status, enrollment_date, withdrawal_date)
        SELECT
            student_id,
            one,
            status,
            began,
            IF(status = 'withdrawn', GREATEST(COALESCE(ended, began), began), NULL)
        FROM (
            SELECT
                old.student_id,
                CASE
                    WHEN SUM(old.status = 'active') > 0 THEN 'active'
                    WHEN SUM(old.status = 'completed') > 0 THEN 'completed'
                    ELSE 'withdrawn'
                END AS status,
                COALESCE(MIN(NULLIF(old.created_at, '0000-00-00')), now_utc) AS began,
                MAX(old.ended_at) AS ended
            FROM adopt_enrollment AS old
            JOIN auth_user AS student ON student.id = old.student_id
            WHERE old.course_id = one AND old.status IS NOT NULL
            GROUP BY old.student_id
        ) AS merged
        WHERE NOT EXISTS (
            SELECT 1 FROM enrollments_enrollment AS there
            WHERE there.student_id = merged.student_id AND there.course_id = one
        );
        IF ROW_COUNT() > 0 THEN
            UPDATE courses_course
            SET total_enrollments = (
                SELECT COUNT(*) FROM enrollments_enrollment
                WHERE course_id = one AND status IN ('active', 'completed')
            )
            WHERE id = one;
        END IF;
        COMMIT;
    END LOOP;
END//
DELIMITER ;

-- 4. What became of each old row. The numbers add up to those of the old table.

INSERT INTO adopt_report (what, old_id, reason)
SELECT 'enrollment', old.id,
    CASE
        WHEN old.status IS NULL THEN 'unknown status'
        WHEN student.id IS NULL THEN 'no such student'
        ELSE 'no such course, or it was not taken'
    END
FROM adopt_enrollment AS old
LEFT JOIN auth_user AS student ON student.id = old.student_id
LEFT JOIN adopt_named AS named ON named.id = old.course_id
WHERE old.status IS NULL OR student.id IS NULL OR named.id IS NULL;

INSERT INTO adopt_report (what, old_id, reason)
SELECT 'enrollment', old.id, 'one with another row of this student and course'
FROM adopt_enrollment AS old
JOIN (
    SELECT good.student_id, good.course_id, MIN(good.id) AS kept
    FROM adopt_enrollment AS good
    LEFT JOIN adopt_report AS refused ON refused.what = 'enrollment' AND refused.old_id = good.id
    WHERE refused.old_id IS NULL
    GROUP BY good.student_id, good.course_id
    HAVING COUNT(*) > 1
) AS several ON several.student_id = old.student_id AND several.course_id = old.course_id
LEFT JOIN adopt_report AS refused ON refused.what = 'enrollment' AND refused.old_id = old.id
WHERE refused.old_id IS NULL AND old.id <> several.kept;

INSERT INTO adopt_report (what, old_id, reason)
SELECT 'date', old.id, 'none: taken with the date of the day, unless another row has one'
FROM adopt_enrollment AS old
LEFT JOIN adopt_report AS refused ON refused.what = 'enrollment' AND refused.old_id = old.id
WHERE refused.old_id IS NULL AND NULLIF(old.created_at, '0000-00-00') IS NULL;

SELECT what, reason, COUNT(*) AS number, MIN(old_id) AS first_id
FROM adopt_report
GROUP BY what, reason
ORDER BY what, reason;

SELECT
    (SELECT COUNT(*) FROM adopt_course) AS old_courses,
    (SELECT COUNT(*) FROM adopt_named) AS courses_here,
    (SELECT COUNT(*) FROM adopt_enrollment) AS old_rows,
    (SELECT COUNT(*) FROM adopt_report WHERE what = 'enrollment') AS reported,
    (
        SELECT COUNT(*) FROM enrollments_enrollment AS there
        WHERE EXISTS (
            SELECT 1 FROM adopt_enrollment AS old
            WHERE old.student_id = there.student_id AND old.course_id = there.course_id
        )
    ) AS rows_here;

DROP TABLE adopt_named;
DROP VIEW adopt_course, adopt_enrollment;
