-- help: Accuracy on questions by benchmark, mode, checkpoint and subject (percent), with unparsed and truncated shares.
-- param benchmark: text = % | LIKE pattern of the benchmark
-- param mode: text = % | LIKE pattern of the mode: ntp, reasoning or solve
SELECT
    benchmark,
    mode,
    shots,
    checkpoint_id,
    subject,
    count(DISTINCT question_id) AS questions,
    round(100 * avg(correct::INTEGER), 2) AS accuracy,
    round(100 * avg((extracted IS NULL)::INTEGER), 2) AS unparsed,
    round(100 * avg((finish = 'length')::INTEGER), 2) AS truncated,
    round(avg(n_tokens), 1) AS mean_tokens
FROM answers
WHERE benchmark LIKE $benchmark AND mode LIKE $mode
GROUP BY benchmark, mode, shots, checkpoint_id, subject
ORDER BY benchmark, mode, shots, checkpoint_id, subject
