-- help: A dev or test sample: the first by hash above the easy threshold, and the first by hash at or below it.
SELECT
    position_id,
    split AS selected
FROM int_positions
WHERE split = $split
QUALIFY
    row_number() OVER (PARTITION BY difficulty = 'below' ORDER BY sha256(concat($seed, ':', position_id)), position_id)
    <= CASE WHEN difficulty = 'below' THEN $n_below ELSE $n_above END
