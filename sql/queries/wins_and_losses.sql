-- help: Positions one model predicts and the other does not, before and after RPT (blank: the run's first and last evaluated checkpoint).
-- param before: text = | checkpoint_id before; blank for the pretrain run's earliest evaluated checkpoint
-- param after: text = | checkpoint_id after; blank for its latest evaluated checkpoint
-- param mode: text = reasoning | standard, reasoning or no_thought
-- param top: integer = 50 | rows shown
WITH evaluated AS (
    SELECT
        arg_min(checkpoints.checkpoint_id, checkpoints.step) AS first_id,
        arg_max(checkpoints.checkpoint_id, checkpoints.step) AS last_id
    FROM checkpoints
    WHERE checkpoints.kind = 'pretrain' AND checkpoints.checkpoint_id IN (SELECT predictions.checkpoint_id FROM predictions)
),

compared AS (
    SELECT
        coalesce(nullif($before, ''), evaluated.first_id) AS before_id,
        coalesce(nullif($after, ''), evaluated.last_id) AS after_id
    FROM evaluated
)

SELECT
    CASE WHEN now.correct_share > earlier.correct_share THEN 'win' ELSE 'loss' END AS outcome,
    now.difficulty,
    now.context,
    now.token,
    earlier.prediction AS before_prediction,
    now.prediction AS after_prediction,
    round(now.entropy, 3) AS entropy,
    now.position_id
FROM compared
INNER JOIN token_outcomes AS earlier ON compared.before_id = earlier.checkpoint_id
INNER JOIN token_outcomes AS now
    ON compared.after_id = now.checkpoint_id AND earlier.position_id = now.position_id AND earlier.mode = now.mode
WHERE earlier.mode = $mode AND now.correct_share <> earlier.correct_share
ORDER BY outcome DESC, now.entropy DESC, now.position_id ASC
LIMIT $top
