-- help: Documents whose tokens differ between the scorers, or that one of them has not scored.
SELECT
    coalesce(filter_documents.doc_id, difficulty_documents.doc_id) AS doc_id,
    coalesce(filter_documents.n_tokens, 0) AS filter_tokens,
    coalesce(difficulty_documents.n_tokens, 0) AS difficulty_tokens
FROM filter_documents
FULL JOIN difficulty_documents ON filter_documents.doc_id = difficulty_documents.doc_id
WHERE
    filter_documents.n_tokens IS DISTINCT FROM difficulty_documents.n_tokens
    OR filter_documents.fingerprint IS DISTINCT FROM difficulty_documents.fingerprint
ORDER BY doc_id
LIMIT 1
