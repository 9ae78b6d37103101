-- help: One vocabulary entry, with what eligibility needs to know about its bytes.
SELECT
    token_id,
    bytes,
    special,
    octet_length(bytes) AS n_bytes,
    -- a continuation byte (10xxxxxx) first: the token begins inside a character
    coalesce(bytes[1:1] >= '\x80'::BLOB AND bytes[1:1] < '\xC0'::BLOB, FALSE) AS inside_character
FROM vocabulary
