{#-
  Joins with declared handling of keys that are null or find nothing:

    joins:
      - to: invoice                        # alias of the joined relation
        match: {invoice_id: invoice_id}    # column of the left side: column of the joined side
        missing: quarantine                # keep | quarantine | default
        null_key: quarantine               # keep | quarantine
        default: {is_known: false}         # with missing: default, what the joined columns become
        message: the invoice is unknown    # with quarantine

  In a model: `from payment {{ declared_join('invoice', left='payment') }} where {{ join_keeps(...) }}`; what
  is not kept is listed by `join_breaks` in the model's `__rejected` companion.
-#}

{% macro declared_join_to(to) -%}
    {%- for join in declared('joins') if join['to'] == to -%}
        {{ return(join) }}
    {%- endfor -%}
    {{ exceptions.raise_compiler_error("Model '" ~ declared_model()['name'] ~ "' declares no join to '" ~ to ~ "'.") }}
{%- endmacro %}

{#- Join clause: `left join <relation> as <to> on ...`. -#}
{% macro declared_join(to, left, relation=none) -%}
    {%- if execute -%}
        left join {{ relation or to }} as {{ to }}
            on
            {%- for left_column, right_column in declared_join_to(to)['match'].items() %}
            {% if not loop.first %}and {% endif %}{{ to }}.{{ right_column }} = {{ left }}.{{ left_column }}
            {%- endfor %}
    {%- endif -%}
{%- endmacro %}

{#- Predicate: a key column of the left side is null. -#}
{% macro join_key_is_null(to, left) -%}
    {%- set tests = [] -%}
    {%- for column in declared_join_to(to)['match'] -%}
        {%- do tests.append(left ~ '.' ~ column ~ ' is null') -%}
    {%- endfor -%}
    {{ return('(' ~ tests | join(' or ') ~ ')') }}
{%- endmacro %}

{#- Predicate: the row breaks the join by a null key (`kind='null_key'`) or by finding nothing (`'missing'`). -#}
{% macro join_breaks(to, left, kind) -%}
    {%- if not execute -%}{{ return('1 = 0') }}{%- endif -%}
    {%- set join = declared_join_to(to) -%}
    {%- if join[kind] != 'quarantine' -%}{{ return('1 = 0') }}{%- endif -%}
    {%- set no_key = join_key_is_null(to, left) -%}
    {%- if kind == 'null_key' -%}{{ return(no_key) }}{%- endif -%}
    {{ return('(not ' ~ no_key ~ ' and ' ~ to ~ '.' ~ (join['match'].values() | first) ~ ' is null)') }}
{%- endmacro %}

{#- Predicate: the declaration keeps the row. -#}
{% macro join_keeps(to, left) -%}
    {{ return('not ' ~ join_breaks(to, left, 'null_key') ~ ' and not ' ~ join_breaks(to, left, 'missing')) }}
{%- endmacro %}

{#- Column of the joined relation, with its declared default. -#}
{% macro joined_column(to, column) -%}
    {%- set defaults = (declared_join_to(to).get('default', {}) if execute else {}) -%}
    {%- if column not in defaults -%}{{ return(to ~ '.' ~ column) }}{%- endif -%}
    {%- set default = defaults[column] -%}
    {{ return(
        'coalesce(' ~ to ~ '.' ~ column ~ ', '
        ~ (text_literal(default) if default is string else (default | string | lower)) ~ ')'
    ) }}
{%- endmacro %}

{#-
  Select of the records that break the declared join, as in `rejected_records`. `left` names a relation with
  the raw stamps `_batch_id` and `_row_number`; the joined relation is `to` or `relation`.
-#}
{% macro rejected_by_join(dataset, to, left, relation=none) -%}
select
    {{ run_tenant() }} as tenant_id,
    {{ text_literal(dataset) }} as dataset,
    {{ left }}._batch_id as batch_id,
    {{ left }}._row_number as row_number,
    case
        when {{ join_breaks(to, left, 'null_key') }} then {{ text_literal(to ~ '_key_missing') }}
        else {{ text_literal(to ~ '_unknown') }}
    end as rule,
    {{ text_literal(declared_join_to(to)['message'] if execute else '') }} as message
from {{ left }}
{{ declared_join(to, left, relation) }}
where {{ join_breaks(to, left, 'null_key') }} or {{ join_breaks(to, left, 'missing') }}
{%- endmacro %}
