{#- SQL string literal of any value. -#}
{% macro text_literal(value) -%}
    {{ return(dbt.string_literal(dbt.escape_single_quotes(value | string))) }}
{%- endmacro %}

{#- SQL date literal of an ISO date. -#}
{% macro date_literal(value) -%}
    {{ return('cast(' ~ text_literal(value) ~ ' as date)') }}
{%- endmacro %}

{#- `expression in (literals)`; an empty list contains nothing. -#}
{% macro in_literals(expression, literals) -%}
    {{ return(expression ~ ' in (' ~ (literals | join(', ')) ~ ')' if literals else '1 = 0') }}
{%- endmacro %}
