{#-
  Survivorship: of several sources' statements about one entity, which one counts, per attribute, by ordered
  rules. A null never survives while another source knows a value.

    survivorship:
      name:
        rules:
          - {rule: system_of_record, column: system, order: [crm, erp]}
          - {rule: freshness, column: updated_at}        # the latest
          - {rule: quality, column: quality_score}       # the highest; or `order: [...]`, the best first
        carries: {name_source: system}                   # output column: column of the surviving row

  Statements equal under all rules are decided by the value itself, in code point order, so the result
  depends on nothing but the statements.
-#}

{#- Sort terms of one attribute, best first. -#}
{% macro survivorship_order(attribute, rules) -%}
    {%- set terms = ['case when ' ~ attribute ~ ' is null then 1 else 0 end'] -%}
    {%- for rule in rules -%}
        {%- if rule['rule'] not in ('system_of_record', 'freshness', 'quality') -%}
            {{ exceptions.raise_compiler_error(
                "Survivorship of '" ~ attribute ~ "' names the rule '" ~ rule['rule']
                ~ "'; allowed: system_of_record, freshness, quality."
            ) }}
        {%- elif 'order' in rule -%}
            {%- set cases = [] -%}
            {%- for value in rule['order'] -%}
                {%- do cases.append('when ' ~ text_literal(value) ~ ' then ' ~ loop.index0) -%}
            {%- endfor -%}
            {%- do terms.append('case ' ~ rule['column'] ~ ' ' ~ cases | join(' ') ~ ' else ' ~ rule['order'] | length ~ ' end') -%}
        {%- else -%}
            {%- do terms.append(rule['column'] ~ ' desc nulls last') -%}
        {%- endif -%}
    {%- endfor -%}
    {%- do terms.append(binary_text('cast(' ~ attribute ~ ' as ' ~ dbt.type_string() ~ ')')) -%}
    {{ return(terms | join(', ')) }}
{%- endmacro %}

{#-
  Select with one row per `key`: the key, every attribute with declared survivorship, what they carry, and
  `aggregates`, a mapping of output columns to aggregates over all statements.
-#}
{% macro survivors(statements, key, aggregates={}) -%}
{%- set attributes = declared('survivorship') if execute else {} -%}
select
    {{ key }}
    {%- for attribute, declaration in attributes.items() %},
    max(case when {{ attribute }}_rank = 1 then {{ attribute }} end) as {{ attribute }}
    {%- for carried, column in declaration.get('carries', {}).items() %},
    max(case when {{ attribute }}_rank = 1 then {{ column }} end) as {{ carried }}
    {%- endfor %}
    {%- endfor %}
    {%- for column, aggregate in aggregates.items() %},
    {{ aggregate }} as {{ column }}
    {%- endfor %}
from (
    select
        {{ statements }}.*
        {%- for attribute, declaration in attributes.items() %},
        row_number() over (
            partition by {{ key }}
            order by {{ survivorship_order(attribute, declaration['rules']) }}
        ) as {{ attribute }}_rank
        {%- endfor %}
    from {{ statements }}
) as ranked_statement
group by {{ key }}
{%- endmacro %}
