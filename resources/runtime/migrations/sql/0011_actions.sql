-- Action templates, rules' jobs, silences.
select;
