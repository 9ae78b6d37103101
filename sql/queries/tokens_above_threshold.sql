-- help: How many eligible tokens exceed an entropy threshold, by split: what a value of select.min_entropy would keep.
-- param scorer: text = filter | filter or difficulty
-- param min_entropy: number = 1.0 | only tokens whose entropy exceeds this, nats
WITH parts AS (
    -- tenths of a nat that lie above the threshold were counted by select
    SELECT
        split,
        tokens
    FROM eligible_counts
    WHERE scorer = $scorer AND tenth > floor($min_entropy::FLOAT * 10)
    UNION ALL
    -- of the tenth that holds it the rows are read; the range lets whole row groups be passed over
    SELECT
        split,
        count(*) AS tokens
    FROM eligible_tokens
    WHERE
        scorer = $scorer
        AND entropy BETWEEN $min_entropy::FLOAT AND ($min_entropy + 0.2)::FLOAT
        AND entropy > $min_entropy
        AND floor(entropy * 10) = floor($min_entropy::FLOAT * 10)
    GROUP BY split
)

SELECT
    split,
    sum(tokens)::BIGINT AS tokens
FROM parts
GROUP BY split
ORDER BY split
