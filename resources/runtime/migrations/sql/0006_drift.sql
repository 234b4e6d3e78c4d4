-- Drift and the decisions on it.
select;
