-- help: Training candidates among the share with the highest filter entropy; ties fall by position_id.
SELECT position_id
FROM int_positions
WHERE split = 'train' AND winnable
QUALIFY row_number() OVER (ORDER BY filter_entropy DESC, position_id ASC) <= ceil($top_share * count(*) OVER ())
