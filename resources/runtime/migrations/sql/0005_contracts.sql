-- Contract registry: datasets, immutable versions, subscriptions.
select;
