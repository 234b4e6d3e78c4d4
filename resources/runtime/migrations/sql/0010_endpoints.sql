-- Endpoints, deliveries, receipts, DLQ.
select;
