-- help: The text of a range of a text's bytes, or U+FFFD where it cuts a character.
-- column bytes: The text, as encode(text), or the piece of it that the range lies in: DuckDB copies all of it for every row.
-- column byte_start: Offset of the first byte.
-- column byte_len: Number of bytes.
SELECT coalesce(try(decode(array_slice($bytes, $byte_start + 1, $byte_start + $byte_len))), '�') AS text_of_range
