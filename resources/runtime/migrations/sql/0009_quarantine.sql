-- Quarantine life, replays, back-fills, retention.
select;
