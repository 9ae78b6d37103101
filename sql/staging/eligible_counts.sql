-- help: The table eligible_counts: positions by scorer, split and tenth of a nat, the tenths that eligible_tokens is sorted by.
WITH counted AS (
    SELECT
        split,
        floor(filter_entropy * 10)::SMALLINT AS filter_tenth,
        floor(entropy * 10)::SMALLINT AS difficulty_tenth,
        count(*) AS tokens
    FROM int_positions
    GROUP BY split, filter_tenth, difficulty_tenth
),

scored AS (
    SELECT
        'filter' AS scorer,
        split,
        filter_tenth AS tenth,
        tokens
    FROM counted
    UNION ALL
    SELECT
        'difficulty' AS scorer,
        split,
        difficulty_tenth AS tenth,
        tokens
    FROM counted
)

SELECT
    scorer,
    split,
    tenth,
    sum(tokens)::BIGINT AS tokens
FROM scored
GROUP BY scorer, split, tenth
ORDER BY scorer ASC, split ASC, tenth DESC
