-- help: The text before a byte offset, at most its last 80 bytes; fewer by up to three where 80 would begin inside a character;
--   null where the offset itself lies inside one.
-- column bytes: The text, as encode(text), or a piece of it: DuckDB copies all of it for every row.
-- column byte_start: Offset of the first byte that is not shown.
SELECT
    -- a list of one, because its lambda names the 80 bytes, which are then cut without the text;
    -- they begin inside a character where their first byte is 10xxxxxx
    list_transform(
        [array_slice($bytes, greatest($byte_start - 79, 1), $byte_start)],
        LAMBDA last: try(decode(
            CASE
                WHEN array_slice(last, 1, 1) NOT BETWEEN '\x80'::BLOB AND '\xBF'::BLOB THEN last
                WHEN array_slice(last, 2, 2) NOT BETWEEN '\x80'::BLOB AND '\xBF'::BLOB THEN array_slice(last, 2, 80)
                WHEN array_slice(last, 3, 3) NOT BETWEEN '\x80'::BLOB AND '\xBF'::BLOB THEN array_slice(last, 3, 80)
                ELSE array_slice(last, 4, 80)
            END
        ))
    )[1] AS context
