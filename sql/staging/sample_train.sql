-- help: The training sample: the candidates that come first by hash, so that a smaller sample is a prefix of a larger one.
SELECT
    position_id,
    'train' AS selected
FROM train_candidates
ORDER BY sha256(concat($seed, ':', position_id)), position_id
LIMIT $n_positions
