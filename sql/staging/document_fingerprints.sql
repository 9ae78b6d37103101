-- help: One document's tokens as a count and an order-free fingerprint, so that two scorers' tables compare in one pass each.
SELECT
    doc_id,
    count(*) AS n_tokens,
    bit_xor(hash(position, token_id, byte_start, byte_len)) AS fingerprint
FROM scored_tokens
GROUP BY doc_id
