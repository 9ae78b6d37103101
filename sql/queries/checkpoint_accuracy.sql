-- help: Next-token accuracy of every evaluated checkpoint, one row per mode, with easy, medium and hard side by side (percent).
-- param split: text = test | dev or test
SELECT
    mode,
    kind,
    step,
    checkpoint_id,
    max(positions) FILTER (WHERE difficulty = 'all') AS positions,
    round(100 * max(accuracy) FILTER (WHERE difficulty = 'easy'), 2) AS easy,
    round(100 * max(accuracy) FILTER (WHERE difficulty = 'medium'), 2) AS medium,
    round(100 * max(accuracy) FILTER (WHERE difficulty = 'hard'), 2) AS hard,
    round(100 * max(accuracy) FILTER (WHERE difficulty = 'all'), 2) AS all_positions,
    round(100 * max(winnable_accuracy) FILTER (WHERE difficulty = 'all'), 2) AS all_winnable
FROM accuracy_by_difficulty
WHERE split = $split
GROUP BY mode, kind, step, checkpoint_id
ORDER BY mode, kind, step, checkpoint_id
