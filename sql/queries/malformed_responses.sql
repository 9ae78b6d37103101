-- help: Share of responses without an answer, or cut at the length limit, wherever responses are written: training, evaluation, questions.
-- param min_responses: integer = 1 | only groups of at least this many responses
WITH responses AS (
    SELECT
        'rollouts' AS table_name,
        rollouts.run AS model,
        rollouts.item_kind AS mode,
        rollouts.prediction IS NULL AS unparsed,
        rollouts.finish = 'length' AS truncated,
        rollouts.n_tokens
    FROM rollouts
    UNION ALL
    SELECT
        'predictions' AS table_name,
        predictions.checkpoint_id AS model,
        predictions.mode,
        predictions.prediction IS NULL AS unparsed,
        predictions.finish = 'length' AS truncated,
        predictions.n_tokens
    FROM predictions
    UNION ALL
    SELECT
        'answers' AS table_name,
        answers.checkpoint_id AS model,
        answers.mode,
        answers.extracted IS NULL AS unparsed,
        answers.finish = 'length' AS truncated,
        answers.n_tokens
    FROM answers
)

SELECT
    table_name,
    model,
    mode,
    count(*) AS responses,
    round(avg(unparsed::INTEGER), 4) AS unparsed_share,
    round(avg(truncated::INTEGER), 4) AS truncated_share,
    round(avg((unparsed AND NOT truncated)::INTEGER), 4) AS malformed_share,
    round(avg(n_tokens), 1) AS mean_tokens
FROM responses
GROUP BY table_name, model, mode
HAVING count(*) >= $min_responses
ORDER BY table_name, model, mode
