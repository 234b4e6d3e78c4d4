{#-
  Other engines than PostgreSQL compute a model's rows and no more. The platform compiles the model for the engine,
  loads the rows it computed into `<model>__computed` beside the model's table, and then runs the model in PostgreSQL
  with this macro in place of its SQL: versions, contracts and tests are the same code on every engine.
-#}
{% macro computed_rows() -%}
select * from {{ this.incorporate(path={'identifier': this.identifier ~ '__computed'}) }}
{%- endmacro %}
