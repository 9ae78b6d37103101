-- help: The first entry for which two scorers' vocabularies stand for different bytes; empty entries are padding.
WITH filter_entries AS (
    SELECT
        token_id,
        bytes
    FROM vocabulary
    WHERE NOT special AND octet_length(bytes) > 0
),

difficulty_entries AS (
    SELECT
        token_id,
        bytes
    FROM difficulty_vocabulary
    WHERE NOT special AND octet_length(bytes) > 0
)

SELECT
    coalesce(filter_entries.token_id, difficulty_entries.token_id) AS token_id,
    filter_entries.bytes AS filter_bytes,
    difficulty_entries.bytes AS difficulty_bytes
FROM filter_entries
FULL JOIN difficulty_entries ON filter_entries.token_id = difficulty_entries.token_id
WHERE filter_entries.bytes IS DISTINCT FROM difficulty_entries.bytes
ORDER BY token_id
LIMIT 1
