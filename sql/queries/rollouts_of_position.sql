-- help: Every rollout at one position (blank: the position with the most rollouts), in the order they were made.
-- param position_id: text = | the position; blank for the one with the most rollouts
-- param top: integer = 50 | rows shown
WITH chosen AS (
    SELECT coalesce(nullif($position_id, ''), mode(item_id)) AS item_id
    FROM rollouts
    WHERE item_kind = 'position'
)

SELECT
    rollouts.item_id AS position_id,
    rollouts.run,
    rollouts.step,
    rollouts.sample,
    rollouts.reward,
    rollouts.prediction,
    rollouts.finish,
    rollouts.n_tokens,
    rollouts.kept,
    rollouts.response
FROM rollouts
INNER JOIN chosen ON rollouts.item_id = chosen.item_id
ORDER BY rollouts.run, rollouts.step, rollouts.sample
LIMIT $top
