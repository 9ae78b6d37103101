-- help: Tokens of one scorer within one tenth of a nat of entropy.
-- column scorer: filter or difficulty.
-- column bin_start: Lower end of the bin, nats; the bin is 0.1 nats wide.
-- column tokens: Tokens whose entropy falls into the bin.
-- column share: Their share of the scorer's scored tokens, 0 to 1.
-- column mean_nll: Mean negative log-likelihood of those tokens, nats.
SELECT
    scorer,
    floor(entropy::DOUBLE * 10) / 10 AS bin_start,
    count(*) AS tokens,
    count(*) / sum(count(*)) OVER (PARTITION BY scorer) AS share,
    avg(nll) AS mean_nll
FROM tokens
WHERE entropy IS NOT NULL
GROUP BY scorer, bin_start
ORDER BY scorer, bin_start
