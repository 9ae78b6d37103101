-- help: The tokens a scorer was least sure of, with the text before them.
-- param scorer: text = difficulty | filter or difficulty
-- param split: text = all | train, dev, test or all
-- param source: text = % | LIKE pattern of the document's source
-- param min_entropy: number = 1.5 | only tokens whose entropy exceeds this, nats
-- param top: integer = 20 | rows shown
SELECT
    split,
    difficulty,
    round(entropy, 3) AS entropy,
    context,
    token,
    doc_id,
    position
FROM filtered_tokens_at($scorer, $min_entropy) AS scored
WHERE ($split = 'all' OR split = $split) AND source LIKE $source
ORDER BY scored.entropy DESC, doc_id ASC, position ASC
LIMIT $top
