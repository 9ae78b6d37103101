-- help: Training candidates within a band of filter entropy.
SELECT position_id
FROM int_positions
WHERE split = 'train' AND winnable AND filter_entropy > $min_entropy AND filter_entropy <= $max_entropy
