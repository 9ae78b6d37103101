-- help: The entropy histogram of both scorers side by side, with cumulative shares: what a threshold would keep.
-- param width: number = 0.25 | width of a bin, nats
WITH bins AS (
    SELECT
        floor(entropy::DOUBLE / $width) * $width AS bin_start,
        count(*) FILTER (WHERE scorer = 'filter') AS filter_tokens,
        count(*) FILTER (WHERE scorer = 'difficulty') AS difficulty_tokens
    FROM tokens
    WHERE entropy IS NOT NULL
    GROUP BY bin_start
)

SELECT
    bin_start,
    filter_tokens,
    difficulty_tokens,
    round(sum(filter_tokens) OVER above / nullif(sum(filter_tokens) OVER (), 0), 4) AS filter_share_from_here,
    round(sum(difficulty_tokens) OVER above / nullif(sum(difficulty_tokens) OVER (), 0), 4) AS difficulty_share_from_here
FROM bins
WINDOW above AS (ORDER BY bin_start DESC)
ORDER BY bin_start
