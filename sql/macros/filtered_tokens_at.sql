-- help: The eligible tokens whose entropy by a scorer exceeds a threshold: SELECT * FROM filtered_tokens_at('filter', 1.0).
-- column scorer_name: filter or difficulty.
-- column min_entropy: Only tokens whose entropy exceeds this, nats.
WITH document_bytes AS (
    SELECT
        documents.doc_id,
        documents.source,
        documents.meta,
        encode(documents.text) AS bytes
    FROM documents
),

scored AS (
    SELECT
        positions.*,
        tokens.scorer AS scored_by,
        tokens.token_id,
        tokens.byte_len,
        tokens.entropy AS scorer_entropy,
        tokens.nll,
        tokens.rank
    FROM tokens
    INNER JOIN positions ON tokens.doc_id = positions.doc_id AND tokens.position = positions.position
    WHERE tokens.scorer = $scorer_name AND tokens.entropy > $min_entropy
)

SELECT
    scored.position_id,
    scored.doc_id,
    scored.position,
    scored.byte_start,
    scored.split,
    document_bytes.source,
    document_bytes.meta,
    text_before(document_bytes.bytes, scored.byte_start) AS context,
    text_of(document_bytes.bytes, scored.byte_start, scored.byte_len) AS token,
    scored.token_id,
    scored.scored_by AS scorer,
    scored.scorer_entropy AS entropy,
    scored.nll,
    scored.rank,
    scored.difficulty,
    scored.winnable,
    scored.selected
FROM scored
INNER JOIN document_bytes ON scored.doc_id = document_bytes.doc_id
