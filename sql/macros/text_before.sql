-- help: The text before a byte offset, at most its last 80 bytes; fewer by up to three where 80 would begin inside a character.
-- column bytes: The document, as encode(text).
-- column byte_start: Offset of the first byte that is not shown.
SELECT
    coalesce(
        try(decode(array_slice($bytes, greatest($byte_start - 79, 1), $byte_start))),
        try(decode(array_slice($bytes, greatest($byte_start - 78, 1), $byte_start))),
        try(decode(array_slice($bytes, greatest($byte_start - 77, 1), $byte_start))),
        try(decode(array_slice($bytes, greatest($byte_start - 76, 1), $byte_start)))
    ) AS context
