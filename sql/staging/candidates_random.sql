-- help: Training candidates without regard to entropy.
SELECT position_id
FROM int_positions
WHERE split = 'train' AND winnable
