{#- Predicate: the stock code books a fee, postage or another charge instead of goods. The one list of them. -#}
{% macro is_fee(stock_code) -%}
    {%- set fee_codes = [
        'POST', 'DOT', 'M', 'm', 'C2', 'D', 'S', 'BANK CHARGES', 'AMAZONFEE', 'CRUK', 'PADS', 'B'
    ] -%}
    {%- set literals = [] -%}
    {%- for code in fee_codes -%}{%- do literals.append(text_literal(code)) -%}{%- endfor -%}
    {{ return(in_literals(stock_code, literals)) }}
{%- endmacro %}

{#- Identifier that a spreadsheet turned into a float: '17850.0' is '17850'; empty is null. -#}
{% macro unfloated(identifier) -%}
    {{ return(
        'case when ' ~ identifier ~ " like '%.0' then substring(" ~ identifier ~ ', 1, length(' ~ identifier
        ~ ') - 2) else nullif(' ~ identifier ~ ", '') end"
    ) }}
{%- endmacro %}
