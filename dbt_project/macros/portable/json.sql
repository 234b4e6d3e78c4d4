{#-
  A part of a JSON column as text, null where there is none: `json_field('customer', 'address', 'city')`, and of arrays
  by position from 0: `json_field('tags', 0)`. Without a path it is the value itself. Strings come without quotes,
  numbers as the source wrote them, objects and arrays as JSON; cast it to the type the model needs. What is no JSON, or
  has another shape, has no parts.
-#}
{% macro json_field(expression) -%}
    {%- for step in varargs if step is string and (step == '' or "'" in step or '"' in step or '\\' in step) -%}
        {{ exceptions.raise_compiler_error(
            'json_field: found the name ' ~ step ~ ', allowed are names without quotes and backslashes') }}
    {%- endfor -%}
    {{ return(adapter.dispatch('json_field')(expression, varargs)) }}
{%- endmacro %}

{#-
  DuckDB and Spark read a JSON number as a double and write it anew: 12345678901234567.89 would lose its cents. So
  numbers are made strings with a mark first, and numbers again in what comes out.
-#}
{% macro default__json_field(expression, path) -%}
    {{ return(adapter.dispatch('numbers_of_json')(
        adapter.dispatch('json_extracted')(adapter.dispatch('marked_json')(expression), path))) }}
{%- endmacro %}
{% macro postgres__json_field(expression, path) -%}
    (case when {{ expression }} is json then cast({{ expression }} as json) end
    {%- for step in path %} {{ '->>' if loop.last else '->' }} {{ "'" ~ step ~ "'" if step is string else step }}
    {%- else %} #>> '{}'
    {%- endfor %})
{%- endmacro %}

{#- The mark is a character of Unicode's private use area, which data does not have. -#}
{% macro number_mark() -%}{{ return('\ue000') }}{%- endmacro %}

{% macro default__marked_json(expression) -%}
    array_join(transform(
        regexp_extract_all({{ expression }}, '("(?:[^"\\\\]|\\\\.)*+"|-?[0-9][0-9.eE+-]*|[^"0-9-]+)', 1),
        token -> case when token rlike '^[-0-9]' then concat('"{{ number_mark() }}', token, '"') else token end), '')
{%- endmacro %}
{% macro duckdb__marked_json(expression) -%}
    array_to_string(list_transform(
        regexp_extract_all({{ expression }}, '"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[^"0-9-]+'),
        lambda token: case when regexp_matches(token, '^[-0-9]') then '"{{ number_mark() }}' || token || '"'
        else token end), '')
{%- endmacro %}

{% macro default__json_extracted(expression, path) -%}
    get_json_object(nullif({{ expression }}, 'null'), '$
    {%- for step in path %}{{ "[\\'" ~ step ~ "\\']" if step is string else '[' ~ step ~ ']' }}{% endfor %}')
{%- endmacro %}
{% macro duckdb__json_extracted(expression, path) -%}
    try(json_extract_string({{ expression }}, '$
    {%- for step in path %}{{ '."' ~ step ~ '"' if step is string else '[' ~ step ~ ']' }}{% endfor %}'))
{%- endmacro %}

{% macro default__numbers_of_json(expression) -%}
    regexp_replace(regexp_replace({{ expression }}, '"{{ number_mark() }}([^"]*)"', '$1'), '^{{ number_mark() }}', '')
{%- endmacro %}
{% macro duckdb__numbers_of_json(expression) -%}
    regexp_replace(regexp_replace({{ expression }}, '"{{ number_mark() }}([^"]*)"', '\1', 'g'),
        '^{{ number_mark() }}', '')
{%- endmacro %}
