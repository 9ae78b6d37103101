-- help: Eligible, winnable and selected positions of each split and difficulty.
SELECT
    int_positions.split,
    int_positions.difficulty,
    count(*) AS eligible,
    count(*) FILTER (WHERE int_positions.winnable) AS winnable,
    count(samples.selected) AS selected
FROM int_positions
LEFT JOIN samples ON int_positions.position_id = samples.position_id
GROUP BY int_positions.split, int_positions.difficulty
ORDER BY int_positions.split, int_positions.difficulty
