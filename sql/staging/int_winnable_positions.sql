-- help: One position that is winnable only by a prediction of several tokens.
SELECT DISTINCT int_longer_truths.position_id
FROM int_longer_truths
INNER JOIN boxable_truths ON int_longer_truths.truth = boxable_truths.truth
