-- help: One document token by token, in order, as a scorer saw it (blank: the first document).
-- param doc_id: text = | the document; blank for the first
-- param scorer: text = difficulty | filter or difficulty
WITH chosen AS (
    SELECT
        documents.doc_id,
        encode(documents.text) AS bytes
    FROM documents
    WHERE $doc_id = '' OR documents.doc_id = $doc_id
    ORDER BY documents.doc_id
    LIMIT 1
)

SELECT
    tokens.position,
    text_of(chosen.bytes, tokens.byte_start, tokens.byte_len) AS token,
    round(tokens.entropy, 3) AS entropy,
    round(tokens.nll, 3) AS nll,
    tokens.rank,
    tokens.token_id,
    tokens.byte_start
FROM tokens
INNER JOIN chosen ON tokens.doc_id = chosen.doc_id
WHERE tokens.scorer = $scorer
ORDER BY tokens.position
