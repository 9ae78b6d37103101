-- help: Reward, kept share, zero-variance groups and response length by step of a training run.
-- param run: text = % | LIKE pattern of the run (a version)
-- param item_kind: text = position | position (next-token reasoning) or question
SELECT
    run,
    step,
    groups,
    round(mean_reward, 4) AS mean_reward,
    round(kept_share, 4) AS kept_share,
    round(zero_variance_share, 4) AS zero_variance_share,
    round(mean_tokens, 1) AS mean_tokens,
    round(truncated_share, 4) AS truncated_share,
    round(unparsed_share, 4) AS unparsed_share
FROM reward_by_step
WHERE run LIKE $run AND item_kind = $item_kind
ORDER BY run, step
