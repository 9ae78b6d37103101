-- help: A dev or test sample: the first by hash above the easy threshold and at or below it; where one kind is short, the other fills up.
WITH counted AS (
    SELECT
        position_id,
        split,
        difficulty = 'below' AS is_below,
        count(*) FILTER (WHERE difficulty = 'below') OVER () AS n_below_there,
        count(*) FILTER (WHERE difficulty <> 'below') OVER () AS n_above_there
    FROM int_positions
    WHERE split = $split
)

SELECT
    position_id,
    split AS selected
FROM counted
QUALIFY
    row_number() OVER (PARTITION BY is_below ORDER BY sha256(concat($seed, ':', position_id)), position_id)
    <= CASE
        WHEN is_below THEN $n_below + greatest(0, $n_above - n_above_there)
        ELSE $n_above + greatest(0, $n_below - n_below_there)
    END
