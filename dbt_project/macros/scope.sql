{#-
  The keys of a model that this run may change. Declared, never hand-written:

    scope:
      key: invoice_id                     # column of the model that the strategy restricts its rows by
      from:
        - {raw: order_to_cash.invoices, column: invoice_id}
        - {gdp: invoice_payment, column: invoice_id}
        - gdp: customer                   # column -> key by way of another relation
          column: customer_id
          through: {raw: order_to_cash.invoices, column: customer_id, key: invoice_id}

  A raw input affects the keys in the run's batches, current or not: a superseded batch takes rows away. A
  GDP input affects the keys of versions which this run opened or closed: a row that moved from one key to
  another affects both. `through` looks at raw rows, current or not, and at all versions of GDP rows, so it
  may name too many keys, never too few. Every input is also read by the model's own SQL, which is how dbt
  learns of the dependency.
-#}

{#- Relation of a declared input. -#}
{% macro input_relation(input) -%}
    {{ return(ref(input['gdp']) if 'gdp' in input else source(*input['raw'].split('.'))) }}
{%- endmacro %}

{#- Select of the affected keys of the model being run, one column `affected_key`, never null. -#}
{% macro affected_keys() -%}
    {%- for input in declared('scope')['from'] %}
    {% if not loop.first %}union{% endif %}
    {%- set changed -%}
        select {{ input['column'] }} from {{ input_relation(input) }}
        where
        {%- if 'gdp' in input %}
            tenant_id = {{ run_tenant() }}
            and (valid_from_run = {{ run_id() }} or valid_to_run = {{ run_id() }})
        {%- else %}
            _tenant_id = {{ run_tenant() }}
            and {{ in_literals('_batch_id', run_batches()) }}
        {%- endif %}
    {%- endset %}
    {%- if 'through' in input %}
    {%- set through = input['through'] %}
    select {{ through['key'] }} as affected_key
    from {{ input_relation(through) }}
    where
        {{ 'tenant_id' if 'gdp' in through else '_tenant_id' }} = {{ run_tenant() }}
        and {{ through['key'] }} is not null
        and {{ through['column'] }} in ({{ changed }})
    {%- else %}
    select {{ input['column'] }} as affected_key
    from ({{ changed }}) as changed_rows
    where {{ input['column'] }} is not null
    {%- endif %}
    {%- endfor %}
{%- endmacro %}

{#- Predicate: `expression`, a key, is within this run's scope. -#}
{% macro in_scope(expression) -%}
    {%- if not execute or run_covers_all() -%}
        {{ return('1 = 1') }}
    {%- endif -%}
    {{ return(expression ~ ' in (select affected_key from (' ~ affected_keys() ~ ') as affected)') }}
{%- endmacro %}

{#- Predicate over raw rows: the key is within scope, or there is no key and the row's batch is of this run. -#}
{% macro in_scope_or_keyless(expression) -%}
    {%- if not execute or run_covers_all() -%}
        {{ return('1 = 1') }}
    {%- endif -%}
    {{ return(
        '(' ~ in_scope(expression)
        ~ ' or (' ~ expression ~ ' is null and ' ~ in_literals('_batch_id', run_batches()) ~ '))'
    ) }}
{%- endmacro %}
