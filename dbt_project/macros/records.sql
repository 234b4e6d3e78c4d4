{#-
  Raw records as the GDP reads them. What a record is, when it is late and which rules it must keep is
  declared per raw dataset:

    records:
      order_to_cash.invoices:
        identity: invoice_id              # absent: every row is a record of its own
        late_data: {event_time: last_modified, keep: latest}
        rules:
          - {rule: invoice_id_present, accept: "invoice_id is not null", message: "the invoice has no id"}

  Late data: of several records with one identity the one with the latest (`keep: latest`) or the first
  (`keep: earliest`) event time counts, whenever it arrived; the loser stays in raw. Equal event times are
  decided by partition date, order of delivery and row, the later one winning.

  Rules come before late data: a record that breaks one counts for nothing, also not against an older one.
  A rule is kept only if `accept` is true; unknown is broken. `:currency` stands for the tenant's currency.

  Deletions: which records say that an entity is gone is declared by the source, in the manifest (`deleted`,
  `operations`), and reaches the models as the variable `sources`. Of an identity whose newest record is a
  deletion nothing counts; a later record of it that is none brings it back. A record of how a row was before
  its update counts for nothing. Deletions and such records need not keep the rules: they may have no values.
-#}

{#-
  Derived table: current raw rows of the tenant, with `source_id`, `partition_date` and `delivery_order` of their
  batch. Where a source marks deletions, rows are no state by themselves: only `current_records` may read them.
-#}
{% macro raw_rows(dataset, tells_deletions=false) -%}
{%- if execute and run_source(dataset) and not tells_deletions -%}
    {{ exceptions.raise_compiler_error(
        "The source of '" ~ dataset ~ "' marks deletions, and model '" ~ declared_model()['name'] ~ "' reads raw_rows, "
        ~ "which takes them for records that count. Read current_records('" ~ dataset ~ "') instead, and declare the "
        ~ "identity of its records under meta.records."
    ) }}
{%- endif -%}
(
    select raw_row.*, raw_batch.source_id, raw_batch.partition_date, raw_batch.delivery_order
    from {{ source(*dataset.split('.')) }} as raw_row
    inner join {{ source('platform', 'raw_batch') }} as raw_batch on raw_batch.batch_id = raw_row._batch_id
    where
        raw_row._tenant_id = {{ run_tenant() }}
        and raw_batch.tenant_id = {{ run_tenant() }}
        and raw_batch.dataset = {{ text_literal(dataset) }}
        and raw_batch.is_current
)
{%- endmacro %}

{#- Predicate of one declared rule, with placeholders filled. -#}
{% macro rule_predicate(rule) -%}
    {{ return('(' ~ rule['accept'] | replace(':currency', run_currency() if ':currency' in rule['accept'] else '') ~ ')') }}
{%- endmacro %}

{#- Predicate over raw rows of `dataset`: they keep every declared rule. -#}
{% macro keeps_rules(dataset) -%}
    {%- if not execute -%}{{ return('1 = 1') }}{%- endif -%}
    {%- set predicates = [] -%}
    {%- for rule in declared('records')[dataset]['rules'] -%}
        {%- do predicates.append(rule_predicate(rule)) -%}
    {%- endfor -%}
    {{ return(predicates | join(' and ') or '1 = 1') }}
{%- endmacro %}

{#- Predicate over raw rows of `dataset`: the record says that its entity is gone. Never null. -#}
{% macro is_deletion(dataset) -%}
    {%- set marks = run_source(dataset) if execute else {} -%}
    {%- set terms = [] -%}
    {%- if 'deleted' in marks and marks['deleted']['values'] -%}
        {%- do terms.append(is_marked(marks['deleted']['column'], marks['deleted']['values'])) -%}
    {%- elif 'deleted' in marks -%}
        {%- do terms.append(marks['deleted']['column'] ~ ' is not null') -%}
    {%- endif -%}
    {%- if 'operations' in marks -%}
        {%- do terms.append(is_marked(marks['operations']['column'], marks['operations']['delete'])) -%}
    {%- endif -%}
    {{ return('(' ~ (terms | join(' or ') or '1 = 0') ~ ')') }}
{%- endmacro %}

{#- Predicate over raw rows of `dataset`: the record is a state or the end of its entity, by its operation. -#}
{% macro is_operation(dataset) -%}
    {%- set marks = run_source(dataset) if execute else {} -%}
    {%- if 'operations' not in marks -%}{{ return('1 = 1') }}{%- endif -%}
    {{ return(is_marked(marks['operations']['column'], marks['operations']['state'] + marks['operations']['delete'])) }}
{%- endmacro %}

{#- Predicate: a column, as text, is one of the values; false for null. -#}
{% macro is_marked(column, values) -%}
    {%- set literals = [] -%}
    {%- for value in values -%}{%- do literals.append(text_literal(value)) -%}{%- endfor -%}
    {{ return(
        'coalesce(cast(' ~ column ~ ' as ' ~ dbt.type_string() ~ ') in (' ~ literals | join(', ') ~ '), false)'
    ) }}
{%- endmacro %}

{#-
  Derived table: the records of `dataset` that count, one per identity. `where` may narrow the identities
  only: it is applied before duplicates are decided.
-#}
{% macro current_records(dataset, where='1 = 1') -%}
{%- set record = declared('records')[dataset] if execute else {'identity': '_row_number'} -%}
{%- set marks = run_source(dataset) if execute else {} -%}
{%- if marks and 'identity' not in record -%}
    {{ exceptions.raise_compiler_error(
        "The source of '" ~ dataset ~ "' marks deletions, but meta.records of model '" ~ declared_model()['name']
        ~ "' says nothing of the identity by which they find what is gone."
    ) }}
{%- endif -%}
{%- set accepted -%}
    select * from {{ raw_rows(dataset, tells_deletions=true) }} as raw_record
    where
        {%- if marks %}
        {{ is_operation(dataset) }} and ({{ is_deletion(dataset) }} or ({{ keeps_rules(dataset) }})) and {{ where }}
        {%- else %} {{ keeps_rules(dataset) }} and {{ where }}
        {%- endif %}
{%- endset -%}
{%- set order = ['partition_date desc nulls last', binary_text('delivery_order') ~ ' desc', '_row_number desc'] -%}
{%- if 'late_data' in record -%}
    {%- set late_data = record['late_data'] -%}
    {%- set direction = {'latest': 'desc', 'earliest': 'asc'}[late_data['keep']] -%}
    {%- do order.insert(0, late_data['event_time'] ~ ' ' ~ direction ~ ' nulls last') -%}
{%- endif -%}
{%- if marks.get('operations', {}).get('sequence') -%}
    {%- do order.insert(0, marks['operations']['sequence'] ~ ' desc nulls last') -%}
{%- endif -%}
{%- if marks -%}
(
    select * from ({{ first_per_key(accepted, as_list(record['identity']), order) }}) as newest_record
    where not {{ is_deletion(dataset) }}
)
{%- else -%}
({{ first_per_key(accepted, as_list(record['identity']), order) if 'identity' in record else accepted }})
{%- endif -%}
{%- endmacro %}

{#-
  Select of the rows of `dataset` that break a declared rule, each with the first rule it breaks:
  tenant_id, dataset, batch_id, row_number, rule, message. `key` is the raw column of the scope's key.
-#}
{% macro rejected_records(dataset, key) -%}
select
    {{ run_tenant() }} as tenant_id,
    {{ text_literal(dataset) }} as dataset,
    batch_id,
    row_number,
    rule,
    case rule
        {%- for rule in (declared('records')[dataset]['rules'] if execute else []) %}
        when {{ text_literal(rule['rule']) }} then {{ text_literal(rule['message']) }}
        {%- endfor %}
        else ''
    end as message
from (
    select
        _batch_id as batch_id,
        _row_number as row_number,
        case
            {%- for rule in (declared('records')[dataset]['rules'] if execute else []) %}
            when {{ rule_predicate(rule) }} is not true then {{ text_literal(rule['rule']) }}
            {%- endfor %}
            when 1 = 0 then ''
        end as rule
    from {{ raw_rows(dataset, tells_deletions=true) }} as raw_record
    where
        {{ in_scope_or_keyless(key) }}
        {%- if execute and run_source(dataset) %}
        and {{ is_operation(dataset) }} and not {{ is_deletion(dataset) }}
        {%- endif %}
) as judged_record
where rule is not null
{%- endmacro %}
