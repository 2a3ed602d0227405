-- name: held_payouts
SELECT record FROM payouts
WHERE state = 'held'
  AND ($1::text IS NULL
       OR (received_at, payout) > (SELECT received_at, payout FROM payouts WHERE payout = $1))
ORDER BY received_at, payout LIMIT $2;
