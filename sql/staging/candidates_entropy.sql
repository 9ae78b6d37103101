-- help: Training candidates whose filter entropy exceeds a threshold (RPT §3.2).
SELECT position_id
FROM int_positions
WHERE split = 'train' AND winnable AND filter_entropy > $min_entropy
