-- help: One document token by token, in order, as a scorer saw it (blank: the first document).
-- param doc_id: text = | the document; blank for the first
-- param scorer: text = difficulty | filter or difficulty
WITH chosen AS (
    SELECT
        documents.doc_id,
        encode(documents.text) AS bytes,
        -- a length of pieces that makes little of both: copies of the document, and of a piece for 2,048 rows
        greatest(4096, documents.n_bytes // 45) AS size
    FROM document_of($doc_id) AS documents
    ORDER BY documents.doc_id
    LIMIT 1
),

own AS (
    SELECT
        tokens.*,
        tokens.byte_start // chosen.size AS piece,
        tokens.byte_start % chosen.size AS first_byte
    FROM tokens_of($doc_id) AS tokens
    INNER JOIN chosen ON tokens.doc_id = chosen.doc_id
    WHERE tokens.scorer = $scorer
),

-- DuckDB copies all that a range is cut from, for every row: from a book that would be gigabytes
pieces AS (
    SELECT
        numbers.piece,
        array_slice(
            chosen.bytes,
            numbers.piece * chosen.size + 1,
            (numbers.piece + 1) * chosen.size + (SELECT max(own.byte_len) FROM own)
        ) AS bytes
    FROM chosen
    CROSS JOIN range(0, octet_length(chosen.bytes) // chosen.size + 1) AS numbers (piece)
)

SELECT
    own.position,
    text_of(pieces.bytes, own.first_byte, own.byte_len) AS token,
    round(own.entropy, 3) AS entropy,
    round(own.nll, 3) AS nll,
    own.rank,
    own.token_id,
    own.byte_start
FROM own
INNER JOIN pieces ON own.piece = pieces.piece
ORDER BY own.position
