-- help: One document token by token, in order, as a scorer saw it (blank: the first document).
-- param doc_id: text = | the document; blank for the first
-- param scorer: text = difficulty | filter or difficulty
WITH chosen AS (
    SELECT
        documents.doc_id,
        encode(documents.text) AS bytes,
        -- DuckDB copies all that a range is cut from, for every row: from a book that would be gigabytes. A length of pieces that
        -- makes little of both: pieces carried along, and copies of one for 2,048 rows
        greatest(4096, documents.n_bytes // 45) AS size,
        -- each runs on into the next, so that it holds whole every token that starts in it and is no longer than a piece
        list_transform(
            range(0, documents.n_bytes + 1, size),
            LAMBDA start: array_slice(bytes, start + 1, start + 2 * size)
        ) AS pieces
    FROM document_of($doc_id) AS documents
    -- the first that is stored: to order them, DuckDB would read the documents twice
    LIMIT 1 -- noqa: AM09
)

SELECT
    tokens.position,
    CASE
        WHEN tokens.byte_len > chosen.size THEN text_of(chosen.bytes, tokens.byte_start, tokens.byte_len)
        ELSE text_of(
            chosen.pieces[tokens.byte_start // chosen.size + 1],
            tokens.byte_start % chosen.size,
            tokens.byte_len
        )
    END AS token,
    round(tokens.entropy, 3) AS entropy,
    round(tokens.nll, 3) AS nll,
    tokens.rank,
    tokens.token_id,
    tokens.byte_start
FROM tokens_of($doc_id) AS tokens
INNER JOIN chosen ON tokens.doc_id = chosen.doc_id
WHERE tokens.scorer = $scorer
ORDER BY tokens.position
