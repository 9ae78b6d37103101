-- help: How far the two scorers agree on eligible positions: correlation of entropies, and where one calls hard what the other does not.
-- param threshold: number = 1.0 | entropy that counts as hard, nats
SELECT
    split,
    count(*) AS positions,
    round(corr(entropy, filter_entropy), 4) AS correlation,
    round(avg(entropy), 4) AS mean_difficulty_entropy,
    round(avg(filter_entropy), 4) AS mean_filter_entropy,
    count(*) FILTER (WHERE entropy > $threshold AND filter_entropy > $threshold) AS both_hard,
    count(*) FILTER (WHERE entropy > $threshold AND filter_entropy <= $threshold) AS only_difficulty_hard,
    count(*) FILTER (WHERE entropy <= $threshold AND filter_entropy > $threshold) AS only_filter_hard
FROM positions
GROUP BY split
ORDER BY split
