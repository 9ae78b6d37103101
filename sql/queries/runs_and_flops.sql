-- help: Every training run: its last checkpoint's step, FLOPs, tokens and seconds, and when it was committed.
-- param kind: text = % | LIKE pattern of the kind, e.g. pretrain or control.%
SELECT
    checkpoints.kind,
    checkpoints.run,
    any_value(versions.slot) AS slot,
    max(checkpoints.step) AS last_step,
    count(*) AS checkpoints,
    max(checkpoints.flops) AS flops,
    max(checkpoints.tokens_trained) AS tokens_trained,
    max(checkpoints.tokens_generated) AS tokens_generated,
    round(max(checkpoints.wall_s), 1) AS wall_s,
    any_value(checkpoints.seed) AS seed,
    any_value(versions.created) AS created
FROM checkpoints
LEFT JOIN versions ON checkpoints.run = versions.version
WHERE checkpoints.kind LIKE $kind
GROUP BY checkpoints.kind, checkpoints.run
ORDER BY created, checkpoints.kind, checkpoints.run
