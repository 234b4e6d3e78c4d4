-- Lineage graph, OpenLineage outbox and obligations.
select;
