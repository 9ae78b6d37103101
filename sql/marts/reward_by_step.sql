-- help: One optimizer step of one training run, over the rollouts made for it.
-- column run: Version that wrote the rollouts.
-- column item_kind: position (next-token reasoning) or question.
-- column step: Optimizer step.
-- column rollouts: Responses generated, dropped groups included.
-- column groups: Groups of responses to one prompt.
-- column mean_reward: Mean total reward of all responses.
-- column kept_reward: Mean total reward of the responses that went into the update.
-- column kept_share: Share of responses that went into the update.
-- column zero_variance_share: Share of groups whose responses all earned the same reward, and so teach nothing.
-- column all_right_share: Share of groups in which every response earned the group's full reward of 1.
-- column all_wrong_share: Share of groups in which every response earned 0.
-- column unparsed_share: Share of responses from which no answer could be extracted.
-- column truncated_share: Share of responses that ended at the length limit.
-- column mean_tokens: Mean length of a response, tokens.
-- column mean_logprob_gap: Mean |engine - trainer| log-probability, nats; null where not computed.
WITH response_groups AS (
    SELECT
        run,
        step,
        item_kind,
        item_id,
        policy_step,
        count(*) AS rollouts,
        sum(reward) AS reward,
        sum(reward) FILTER (WHERE kept) AS kept_reward,
        count(*) FILTER (WHERE kept) AS kept,
        min(reward) AS lowest,
        max(reward) AS highest,
        count(*) FILTER (WHERE prediction IS NULL) AS unparsed,
        count(*) FILTER (WHERE finish = 'length') AS truncated,
        sum(n_tokens) AS n_tokens,
        sum(logprob_gap) AS logprob_gap,
        count(logprob_gap) AS gaps
    FROM rollouts
    GROUP BY run, step, item_kind, item_id, policy_step
)

SELECT
    run,
    item_kind,
    step,
    sum(rollouts)::BIGINT AS rollouts,
    count(*) AS groups,
    sum(reward) / sum(rollouts) AS mean_reward,
    sum(kept_reward) / nullif(sum(kept), 0) AS kept_reward,
    sum(kept) / sum(rollouts) AS kept_share,
    avg((lowest = highest)::INTEGER) AS zero_variance_share,
    avg((lowest = highest AND lowest = 1)::INTEGER) AS all_right_share,
    avg((lowest = highest AND lowest = 0)::INTEGER) AS all_wrong_share,
    sum(unparsed) / sum(rollouts) AS unparsed_share,
    sum(truncated) / sum(rollouts) AS truncated_share,
    sum(n_tokens) / sum(rollouts) AS mean_tokens,
    sum(logprob_gap) / nullif(sum(gaps), 0) AS mean_logprob_gap
FROM response_groups
GROUP BY run, item_kind, step
ORDER BY run, item_kind, step
