"""An analyst sees the published rows of one tenant, and by no statement anything of another.

The statements run as `barecount sql` connects, without its read-only default: what holds here is enforced by the
database. Whatever a statement answers, rows, COPY data, notices and error texts, is searched for the other tenant's
values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from resources.runtime.database import with_option
from tests.lifecycle.conftest import Project, Sales

TENANTS = ("acme", "globex")
KPIS = ("revenue", "dso", "overdue_ratio")
SCHEMAS = ("raw", "gdp", "kpi", "platform", "dagster")


@dataclass
class Heard:
    """Everything a connection told the analyst."""

    rows: list[tuple] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    error: psycopg.Error | None = None

    def words(self) -> Iterator[str]:
        yield from self.texts
        for row in self.rows:
            yield from (str(value) for value in row)
        if self.error is not None:
            yield str(self.error)
            yield from (str(getattr(self.error.diag, name) or "") for name in
                        ("message_detail", "message_hint", "context", "internal_query"))


def ask(url: str, *statements: str) -> Heard:
    """Run statements in one session until one is refused."""
    heard = Heard()
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.add_notice_handler(lambda notice: heard.texts.append(str(notice.message_primary)))
            for statement in statements:
                with connection.cursor() as cursor:
                    if statement.lower().startswith("copy") and "stdout" in statement.lower():
                        with cursor.copy(statement) as copy:  # type: ignore[arg-type]
                            heard.texts += [bytes(block).decode() for block in copy]
                    else:
                        cursor.execute(statement)  # type: ignore[arg-type]
                        heard.rows += cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        heard.error = error
    return heard


def secrets(project: Project, tenant: str, other: str) -> set[str]:
    """Values of another tenant that nothing shown to this one may contain: amounts, names, hashes."""

    def values(of: str) -> set[str]:
        found: set[Any] = set()
        for kpi in KPIS:
            amounts = f"select value, numerator, denominator from published.{kpi} where tenant_id = $1"
            found.update(value for row in project.rows(amounts, of) for value in row)
        for statement in (
            "select name from gdp.customer where tenant_id = $1",
            "select content_sha256 from platform.raw_batch where tenant_id = $1",
            "select content_sha256 from platform.publication where tenant_id = $1",
            "select encode(chain_hash, 'hex') from platform.evidence where tenant_id = $1",
            "select name from platform.tenant where tenant_id = $1",
        ):
            found.update(value for (value,) in project.rows(statement, of))
        return {str(value) for value in found if len(str(value)) >= 8}

    return values(other) - values(tenant)


@dataclass(frozen=True)
class Analyst:
    tenant: str
    other: str
    url: str
    secrets: frozenset[str]

    def ask(self, *statements: str) -> Heard:
        filled = [s.replace("{other}", self.other).replace("{self}", self.tenant) for s in statements]
        heard = ask(self.url, *filled)
        assert not self.sees(heard), f"{self.tenant} saw something of {self.other}: {self.sees(heard)}"
        return heard

    def sees(self, heard: Heard) -> list[str]:
        """What of the other tenant is in an answer."""
        text = "\n".join(heard.words())
        return [secret for secret in self.secrets if secret in text][:3]


@pytest.fixture(scope="module", params=TENANTS)
def analyst(request: pytest.FixtureRequest, sales: Sales) -> Analyst:
    tenant = request.param
    (other,) = set(TENANTS) - {tenant}
    return Analyst(tenant, other, sales.project.database.analyst_url(tenant),
                   frozenset(secrets(sales.project, tenant, other)))


@pytest.fixture(scope="module", autouse=True)
def everything_is_as_it_was(sales: Sales) -> Iterator[None]:
    """Whatever was tried, no row of any table changed."""
    before = sales.project.state()
    yield
    assert sales.project.state() == before


NOT_ALLOWED = (  # and not: a mistake in the statement
    psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
REFUSED = {
    # Other schemas.
    **{f"tables of {schema}": [f"select * from {table}"] for schema, table in {
        "raw": "raw.order_to_cash__invoices", "raw with stamps": "raw.order_to_cash__invoices__stamped",
        "gdp": "gdp.invoice_settlement", "calendars": "gdp.calendar", "kpi": "kpi.revenue",
        "evidence": "platform.evidence", "batches": "platform.raw_batch", "tenants": "platform.tenant",
        "publications": "platform.publication", "quarantine": "platform.quarantine", "dagster": "dagster.event_logs",
    }.items()},
    "a table by a prepared statement": ["prepare p as select * from kpi.revenue", "execute p"],
    "a table by copy": ["copy kpi.revenue to stdout"],
    "a table by explain": ["explain analyze select * from gdp.invoice_settlement"],
    "a table by a cursor": ["begin", "declare c cursor for select * from kpi.revenue", "fetch all c"],
    "a table as xml": ["select table_to_xml('kpi.revenue', true, false, '')"],
    "a table by a block": ["do $$ declare r record; begin for r in select * from kpi.revenue loop raise notice '%', r; "
                           "end loop; end $$"],
    "a table by a function of one's own": [
        "create function pg_temp.f() returns setof kpi.revenue language sql as 'select * from kpi.revenue'",
        "select * from pg_temp.f()"],
    "a table by a function with the owner's rights": [
        "create function pg_temp.f() returns bigint language sql security definer as "
        "'select count(*) from platform.evidence'", "select pg_temp.f()"],
    "a table by a view of one's own": ["create temp view v as select * from kpi.revenue", "select * from v"],
    "a sequence": ["select last_value from platform.raw_batch_batch_id_seq"],
    "writing evidence": ["select platform.append_evidence('{other}', 'k', 's', 't', now(), '{}')"],
    "registering a tenant": ["select platform.register_tenant('{other}', 'x', 'y')"],
    # Other roles.
    "the other analyst": ["set role analyst_{other}", "select * from published.revenue"],
    "the other analyst, for a transaction": ["begin", "set local role analyst_{other}"],
    "the platform": ["set role barecount_platform", "select * from kpi.revenue"],
    "the owner": ["set role postgres"],
    "the other's session": ["set session authorization analyst_{other}", "select * from published.revenue"],
    "the other by set_config": ["select set_config('role', 'analyst_{other}', false)"],
    "the other's session by set_config": ["select set_config('session_authorization', 'analyst_{other}', false)"],
    "the platform by a block": ["do $$ begin execute 'set role barecount_platform'; end $$"],
    "membership": ["grant analyst_{other} to analyst_{self}"],
    "another name": ["alter role analyst_{self} rename to analyst_x"],
    "passing by security": ["alter role analyst_{self} bypassrls"],
    "a superuser": ["alter role analyst_{self} superuser"],
    "a role": ["create role x login in role analyst_{other}"],
    "the other's password": ["alter role analyst_{other} password 'x'"],
    # Row-level security.
    "row-level security off": ["set row_security = off", "select * from published.snapshot__revenue"],
    "row-level security off for the table": ["alter table published.snapshot__revenue disable row level security"],
    "a policy of one's own": ["create policy p on published.snapshot__revenue using (true)"],
    "without the policy": ["drop policy own_tenant on published.snapshot__revenue"],
    "a view with the owner's rights": ["alter view published.revenue set (security_invoker = false)"],
    "another view": ["create or replace view published.revenue as select * from published.snapshot__revenue"],
    "another tenant function": ["create or replace function published.session_tenant() returns text "
                                "language sql as $$ select '{other}' $$"],
    "a rule": ["create rule r as on insert to published.revenue do instead nothing"],
    "a trigger": ["create trigger t after insert on published.snapshot__revenue execute function now()"],
    "guards off": ["set session_replication_role = replica"],
    # Writing.
    "insert": ["insert into published.snapshot__revenue select * from published.snapshot__revenue"],
    "insert for the other": ["insert into published.current_version values ('{other}', 'revenue', 1)"],
    "update": ["update published.snapshot__revenue set value = 0"],
    "update of a view": ["update published.revenue set value = 0"],
    "delete": ["delete from published.snapshot__revenue returning *"],
    "delete of the pointer": ["delete from published.current_version"],
    "merge": ["merge into published.snapshot__revenue s using published.revenue r on s.period = r.period "
              "when matched then delete"],
    "truncate": ["truncate published.snapshot__revenue"],
    "rows for update": ["select * from published.snapshot__revenue for update"],
    "a lock": ["begin", "lock table published.snapshot__revenue in access exclusive mode"],
    "drop": ["drop table published.snapshot__revenue cascade"],
    "a schema": ["create schema mine"],
    "a table in public": ["create table public.t (a int)"],
    "a table in published": ["create table published.t (a int)"],
    "a function in published": ["create function published.f() returns int language sql as 'select 1'"],
    # The server.
    "a file": ["select pg_read_file('postgresql.conf')"],
    "a binary file": ["select pg_read_binary_file('PG_VERSION')"],
    "a folder": ["select pg_ls_dir('.')"],
    "a file's facts": ["select * from pg_stat_file('PG_VERSION')"],
    "a file by import": ["select lo_import('/etc/passwd')"],
    "a file by copy": ["create temp table t (line text)", "copy t from '/etc/passwd'"],
    "a file written by copy": ["copy (select 1) to '/tmp/leaked-by-an-analyst'"],
    "a program": ["copy (select 1) to program 'cat'"],
    "a program's output": ["create temp table t (line text)", "copy t from program 'id'"],
    "dblink": ["create extension dblink", "select * from dblink('dbname=postgres', 'select 1') as t(a int)"],
    "a foreign server": ["create extension postgres_fdw"],
    "a language": ["create extension plpython3u"],
    "a C function": ["create function pg_temp.f() returns int language c as '/lib/x.so', 'f'"],
    "the server's settings": ["alter system set log_statement = 'all'"],
    "a database": ["create database x"],
    "an event trigger": ["create event trigger t on ddl_command_end execute function now()"],
    "statistics": ["select * from pg_statistic"],
    "passwords": ["select * from pg_authid"],
    "replication": ["select * from pg_create_logical_replication_slot('s', 'test_decoding')"],
}


@pytest.mark.parametrize("statements", REFUSED.values(), ids=REFUSED.keys())
def test_a_statement_that_reaches_further_is_refused(analyst: Analyst, statements: list[str]) -> None:
    assert isinstance(analyst.ask(*statements).error, NOT_ALLOWED)


ANSWERED = {
    "everything": ["select * from published.revenue", "select * from published.revenue__versions",
                   "select * from published.snapshot__revenue", "select * from published.current_version"],
    "the other by name": ["select * from published.revenue where tenant_id = '{other}'"],
    "the other by exclusion": ["select * from published.snapshot__revenue where tenant_id <> '{self}'"],
    "any tenant": ["select * from published.dso where tenant_id = '{other}' or true"],
    "a union": ["select * from published.revenue union all "
                "select * from published.snapshot__revenue where tenant_id = '{other}'"],
    "a subquery": ["select (select max(value) from published.snapshot__dso where tenant_id = '{other}')"],
    "a self join": ["select b.* from published.revenue a join published.snapshot__revenue b "
                    "on b.tenant_id <> a.tenant_id or b.version <> 1"],
    "a lateral join": ["select s.* from published.current_version c, "
                       "lateral (select * from published.snapshot__revenue s where s.version = c.version) s"],
    "a recursion": ["with recursive r as (select * from published.snapshot__dso union "
                    "select s.* from published.snapshot__dso s join r using (period)) select * from r"],
    "a prepared statement": ["prepare p(text) as select * from published.revenue where tenant_id = $1",
                             "execute p('{other}')"],
    "a view of one's own": ["create temp view v as select * from published.snapshot__revenue", "select * from v"],
    "a table of one's own": ["create temp table t as select * from published.snapshot__revenue", "select * from t"],
    "a cursor": ["begin", "declare c cursor for select * from published.snapshot__revenue", "fetch all c"],
    "a function with the definer's rights": [
        "create function pg_temp.f() returns setof published.snapshot__revenue language sql security definer as "
        "'select * from published.snapshot__revenue'", "select * from pg_temp.f()"],
    "a predicate that tells what it is asked": [
        "create function pg_temp.tell(text) returns boolean language plpgsql cost 0.0000001 as "
        "'begin raise notice ''%'', $1; return true; end'",
        "select * from published.revenue where pg_temp.tell(tenant_id || ' ' || value)",
        "select * from published.snapshot__revenue where pg_temp.tell(tenant_id || ' ' || value)",
        "select * from published.revenue__versions where pg_temp.tell(tenant_id || ' ' || value)"],
    "an operator that tells what it is asked": [
        "create function pg_temp.tell(numeric, numeric) returns boolean language plpgsql cost 0.0000001 as "
        "'begin raise notice ''%'', $1; return true; end'",
        "create operator pg_temp.<<< (leftarg = numeric, rightarg = numeric, function = pg_temp.tell)",
        "select * from published.snapshot__dso where value operator(pg_temp.<<<) 0"],
    "an error that tells what it met": [
        "select * from published.snapshot__revenue where cast(tenant_id || ' ' || value as int) = 1"],
    "a division that fails for the other only": [
        "select 1 / (case when tenant_id = '{other}' then 0 else 1 end) from published.snapshot__revenue"],
    "copy of a table": ["copy published.snapshot__revenue to stdout"],
    "copy of a query": ["copy (select * from published.revenue__versions) to stdout with (format csv)"],
    "a plan": ["explain (analyze, verbose) select * from published.snapshot__revenue where tenant_id = '{other}'"],
    "a sample": ["select * from published.snapshot__revenue tablesample system (100)"],
    "rows by their place": ["select * from published.snapshot__revenue where ctid >= '(0,1)'"],
    "xml": ["select schema_to_xml('published', true, false, '')"],
    "a block": ["do $$ declare r record; begin for r in select * from published.snapshot__revenue loop "
                "raise notice '%', r; end loop; end $$"],
    "statistics": ["select * from pg_stats", "select * from pg_stats_ext", "select * from pg_stat_user_tables"],
    "catalogues": ["select * from pg_views where schemaname = 'published'", "select * from pg_policies",
                   "select * from pg_settings", "select * from pg_indexes", "select prosrc from pg_proc",
                   "select * from information_schema.columns", "select * from pg_largeobject_metadata"],
    "other sessions": ["select * from pg_stat_activity", "select * from pg_locks",
                       "select * from pg_prepared_statements"],
    "the group": ["set role barecount_analyst", "select * from published.revenue"],
    "back from a role": ["reset role", "reset session authorization", "discard all", "select * from published.revenue"],
    "a setting of one's own": ["set barecount.tenant = '{other}'", "set app.tenant_id = '{other}'",
                               "select * from published.revenue"],
    "another search path": ["create temp table current_version (tenant_id text, name text, version int)",
                            "insert into current_version values ('{other}', 'revenue', 1)",
                            "set search_path = pg_temp, published", "select * from published.revenue"],
    "a type that shadows": ["create domain pg_temp.text as varchar", "create domain pg_temp.name as varchar",
                            "set search_path = pg_temp, pg_catalog", "select * from published.revenue"],
    "rights handed on": ["grant select on published.revenue to public"],
    "maintenance": ["analyze published.snapshot__revenue", "vacuum published.snapshot__revenue"],
}


@pytest.mark.parametrize("statements", ANSWERED.values(), ids=ANSWERED.keys())
def test_a_statement_that_is_answered_is_answered_with_own_rows(analyst: Analyst, statements: list[str]) -> None:
    heard = analyst.ask(*statements)
    for row in heard.rows:
        assert analyst.other not in row, row


@pytest.mark.parametrize("kpi", KPIS)
def test_an_analyst_sees_all_published_rows_of_the_own_tenant(analyst: Analyst, sales: Sales, kpi: str) -> None:
    own = sales.project.rows(
        f"select * from published.{kpi} where tenant_id = $1 order by grain, period, business_unit", analyst.tenant)
    heard = analyst.ask(f"select * from published.{kpi} order by grain, period, business_unit")
    assert heard.rows == own and len(own) >= 12


def test_the_search_for_secrets_finds_them_where_they_are_allowed(analyst: Analyst, sales: Sales) -> None:
    assert len(analyst.secrets) > 100
    theirs = ask(sales.project.database.analyst_url(analyst.other), "select * from published.revenue",
                 "copy published.snapshot__dso to stdout")
    assert analyst.sees(theirs)


def test_every_table_outside_published_is_closed(analyst: Analyst, sales: Sales) -> None:
    relations = sales.project.rows(
        "select format('%I.%I', nspname, relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where nspname = any($1) and relkind in ('r', 'v', 'm', 'p', 'S') order by 1", list(SCHEMAS))
    assert len(relations) > 40
    for (relation,) in relations:
        error = analyst.ask(f"select * from {relation}").error
        assert isinstance(error, psycopg.errors.InsufficientPrivilege), relation


def test_every_function_of_the_platform_is_closed_to_analysts(analyst: Analyst) -> None:
    heard = analyst.ask(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
        "where n.nspname = any(array['platform', 'raw', 'gdp', 'kpi', 'dagster']) "
        "and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')")
    assert heard.rows == []


def test_every_published_table_forces_row_level_security(sales: Sales) -> None:
    tables = sales.project.rows(
        "select relname, relrowsecurity, relforcerowsecurity from pg_class c join pg_namespace n "
        "on n.oid = c.relnamespace where nspname = 'published' and relkind = 'r'")
    assert {name for name, *_ in tables} == {"current_version", *(f"snapshot__{kpi}" for kpi in KPIS)}
    assert all(enabled and forced for _, enabled, forced in tables)
    views = sales.project.rows(
        "select relname, reloptions from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where nspname = 'published' and relkind = 'v'")
    assert len(views) == 2 * len(KPIS)
    assert all({"security_invoker=true", "security_barrier=true"} <= set(options) for _, options in views)


@pytest.mark.parametrize("option", ["-crole=barecount_platform", "-crole=analyst_{other}", "-crow_security=off",
                                    "-csession_authorization=analyst_{other}", "-csession_replication_role=replica"])
def test_options_of_the_connection_open_nothing(analyst: Analyst, option: str) -> None:
    heard = ask(with_option(analyst.url, option.replace("{other}", analyst.other)),
                "select * from published.snapshot__revenue")
    assert heard.error is not None and heard.rows == [] and not analyst.sees(heard)


@pytest.mark.parametrize("name", ["bc_visitor", "analyst_", "analyst_nobody", "ANALYST_acme", "analystxacme"])
def test_an_analyst_of_no_tenant_sees_nothing(sales: Sales, name: str) -> None:
    project = sales.project
    with psycopg.connect(project.database.admin_url, autocommit=True) as owner:
        owner.execute(f'create role "{name}" login in role barecount_analyst')  # type: ignore[arg-type]
        try:
            url = project.database.analyst_url("acme").replace("//analyst_acme@", f"//{name}@")
            with psycopg.connect(url) as connection:
                for relation in ("revenue", "revenue__versions", "snapshot__revenue", "current_version"):
                    assert connection.execute(f"select * from published.{relation}").fetchall() == []  # type: ignore[arg-type]
        finally:
            owner.execute(f'drop role "{name}"')  # type: ignore[arg-type]


def test_a_stranger_may_not_even_look(sales: Sales) -> None:
    with psycopg.connect(sales.project.database.admin_url, autocommit=True) as owner:
        owner.execute("create role bc_stranger login")
        try:
            url = sales.project.database.analyst_url("acme").replace("//analyst_acme@", "//bc_stranger@")
            for schema in ("published", *SCHEMAS):
                with psycopg.connect(url) as connection:
                    allowed = connection.execute("select has_schema_privilege(%s, 'usage')", (schema,)).fetchone()
                    assert allowed == (False,), schema
        finally:
            owner.execute("drop role bc_stranger")


def test_the_sql_command_is_the_analyst(sales: Sales) -> None:
    own = sales.project.command("sql", "--tenant", "acme", "--json", "select distinct tenant_id from revenue")
    assert own.exit_code == 0 and "acme" in own.stdout and "globex" not in own.stdout
    refused = sales.project.command("sql", "--tenant", "acme", "select * from kpi.revenue")
    assert refused.exit_code == 1 and "access.denied" in refused.stderr
    wrong = sales.project.command("sql", "--tenant", "acme", "selec 1")
    assert wrong.exit_code == 2 and "usage" in wrong.stderr
    unknown = sales.project.command("sql", "--tenant", "initech", "select 1")
    assert unknown.exit_code == 1 and "declaration.unknown" in unknown.stderr
    nobody = sales.project.command("sql", "select 1")
    assert nobody.exit_code == 2
