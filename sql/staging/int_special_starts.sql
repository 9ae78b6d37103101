-- help: Where the first special token of a document stands; documents without any have no row.
SELECT
    filter_tokens.doc_id,
    min(filter_tokens.position) AS position
FROM filter_tokens
INNER JOIN stg_vocabulary ON filter_tokens.token_id = stg_vocabulary.token_id
WHERE stg_vocabulary.special
GROUP BY filter_tokens.doc_id
