"""The ledger: only writer of leases, usage events, rated lines, idempotency records, postings, invoices."""
