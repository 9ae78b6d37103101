-- help: The text of a range of a text's bytes, or U+FFFD where it cuts a character.
-- column bytes: The document, as encode(text).
-- column byte_start: Offset of the first byte.
-- column byte_len: Number of bytes.
SELECT
    -- a character is cut where the range, or what follows it, begins with a byte 10xxxxxx
    CASE
        WHEN
            array_slice($bytes, $byte_start + 1, $byte_start + 1) BETWEEN '\x80'::BLOB AND '\xBF'::BLOB
            OR array_slice($bytes, $byte_start + $byte_len + 1, $byte_start + $byte_len + 1) BETWEEN '\x80'::BLOB AND '\xBF'::BLOB
            THEN '�'
        ELSE decode(array_slice($bytes, $byte_start + 1, $byte_start + $byte_len))
    END AS text_of_range
