-- help: Eligible positions per split, source and difficulty; easy contains medium and hard, medium contains hard.
-- param source: text = % | LIKE pattern of the document's source
SELECT
    positions.split,
    documents.source,
    count(*) AS positions,
    count(*) FILTER (WHERE positions.difficulty = 'below') AS below,
    count(*) FILTER (WHERE positions.difficulty <> 'below') AS easy,
    count(*) FILTER (WHERE positions.difficulty IN ('medium', 'hard')) AS medium,
    count(*) FILTER (WHERE positions.difficulty = 'hard') AS hard,
    count(*) FILTER (WHERE positions.winnable) AS winnable,
    count(*) FILTER (WHERE positions.selected <> '') AS selected
FROM positions
INNER JOIN documents ON positions.doc_id = documents.doc_id
WHERE documents.source LIKE $source
GROUP BY positions.split, documents.source
ORDER BY positions.split, documents.source
