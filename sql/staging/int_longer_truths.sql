-- help: For positions whose first token cannot be boxed alone: the bytes of their first 2, 3, … tokens, in hexadecimal.
WITH tokens_ahead AS (
    SELECT
        int_eligible.position_id,
        steps.step,
        stg_vocabulary.bytes
    FROM int_eligible
    INNER JOIN unboxable_tokens ON int_eligible.token_id = unboxable_tokens.token_id
    CROSS JOIN generate_series(0, $winnable_tokens - 1) AS steps (step) -- noqa: RF02
    INNER JOIN filter_tokens
        ON int_eligible.doc_id = filter_tokens.doc_id AND int_eligible.position + steps.step = filter_tokens.position
    INNER JOIN stg_vocabulary ON filter_tokens.token_id = stg_vocabulary.token_id
)

SELECT
    position_id,
    string_agg(hex(bytes), '') OVER (PARTITION BY position_id ORDER BY step) AS truth
FROM tokens_ahead
QUALIFY row_number() OVER (PARTITION BY position_id ORDER BY step) > 1
