-- help: The text before a byte offset, at most its last 80 bytes; fewer by up to three where 80 would begin inside a character;
--   null where the offset itself lies inside one.
-- column bytes: The document, as encode(text).
-- column byte_start: Offset of the first byte that is not shown.
SELECT
    -- a place lies inside a character where the byte after it is 10xxxxxx
    CASE
        WHEN array_slice($bytes, $byte_start + 1, $byte_start + 1) BETWEEN '\x80'::BLOB AND '\xBF'::BLOB THEN NULL
        WHEN array_slice($bytes, greatest($byte_start - 79, 1), greatest($byte_start - 79, 1)) NOT BETWEEN '\x80'::BLOB AND '\xBF'::BLOB
            THEN decode(array_slice($bytes, greatest($byte_start - 79, 1), $byte_start))
        WHEN array_slice($bytes, greatest($byte_start - 78, 1), greatest($byte_start - 78, 1)) NOT BETWEEN '\x80'::BLOB AND '\xBF'::BLOB
            THEN decode(array_slice($bytes, greatest($byte_start - 78, 1), $byte_start))
        WHEN array_slice($bytes, greatest($byte_start - 77, 1), greatest($byte_start - 77, 1)) NOT BETWEEN '\x80'::BLOB AND '\xBF'::BLOB
            THEN decode(array_slice($bytes, greatest($byte_start - 77, 1), $byte_start))
        ELSE decode(array_slice($bytes, greatest($byte_start - 76, 1), $byte_start))
    END AS context
