-- name: load
SELECT payout, record FROM payouts WHERE payout = ANY($1::text[]);

-- name: upsert
INSERT INTO payouts (
    payout, partition, account, agent, identity, amount, currency, vendor_url,
    state, decision, reason, bank_status, received_at, updated_at, entry_id, record
)
SELECT * FROM unnest(
    $1::text[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::text[], $12::text[], $13::timestamptz[], $14::timestamptz[], $15::text[], $16::bytea[]
)
ON CONFLICT (payout) DO UPDATE SET
    partition = excluded.partition,
    account = excluded.account,
    agent = excluded.agent,
    identity = excluded.identity,
    amount = excluded.amount,
    currency = excluded.currency,
    vendor_url = excluded.vendor_url,
    state = excluded.state,
    decision = excluded.decision,
    reason = excluded.reason,
    bank_status = excluded.bank_status,
    received_at = excluded.received_at,
    updated_at = excluded.updated_at,
    entry_id = excluded.entry_id,
    record = excluded.record;
