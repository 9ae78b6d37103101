-- help: Groups whose responses all earned the same reward, and so teach nothing: how many, all right or all wrong, by difficulty.
-- param run: text = % | LIKE pattern of the run (a version)
-- param first_step: integer = 0 | from this step on
WITH response_groups AS (
    SELECT
        rollouts.run,
        rollouts.item_id,
        rollouts.step,
        rollouts.policy_step,
        min(rollouts.reward) AS lowest,
        max(rollouts.reward) AS highest
    FROM rollouts
    WHERE rollouts.run LIKE $run AND rollouts.step >= $first_step AND rollouts.item_kind = 'position'
    GROUP BY rollouts.run, rollouts.item_id, rollouts.step, rollouts.policy_step
)

SELECT
    response_groups.run,
    coalesce(positions.difficulty, 'unknown') AS difficulty,
    count(*) AS groups,
    round(avg((response_groups.lowest = response_groups.highest)::INTEGER), 4) AS zero_variance_share,
    round(avg((response_groups.lowest = response_groups.highest AND response_groups.lowest > 0)::INTEGER), 4) AS all_right_share,
    round(avg((response_groups.lowest = response_groups.highest AND response_groups.lowest <= 0)::INTEGER), 4) AS all_wrong_share
FROM response_groups
LEFT JOIN positions ON response_groups.item_id = positions.position_id
GROUP BY response_groups.run, difficulty
ORDER BY response_groups.run, difficulty
