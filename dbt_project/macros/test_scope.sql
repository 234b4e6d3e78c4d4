{#-
  Data tests look at the run's tenant only. dbt renders a test's `where` while parsing, before the tenant is
  known; so `where` holds a placeholder, filled here while the test runs:

    __head__     head rows of the tenant
    __tenant__   rows of the tenant
-#}
{% macro get_where_subquery(relation) -%}
    {%- set where = config.get('where', '') -%}
    {%- if not execute or not where -%}{{ return(relation) }}{%- endif -%}
    {%- set tenant = 'tenant_id = ' ~ run_tenant() -%}
    {%- set filter = where
        | replace('__head__', tenant ~ ' and valid_to_run is null')
        | replace('__tenant__', tenant) -%}
    {{ return('(select * from ' ~ relation ~ ' where ' ~ filter ~ ') as tested') }}
{%- endmacro %}
