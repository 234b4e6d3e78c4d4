-- Policies, decisions and approvals.
select;
