-- help: The text of a range of bytes, or U+FFFD where it is not UTF-8.
-- column bytes: The document, as encode(text).
-- column byte_start: Offset of the first byte.
-- column byte_len: Number of bytes.
SELECT coalesce(try(decode(array_slice($bytes, $byte_start + 1, $byte_start + $byte_len))), '�') AS text_of_range
