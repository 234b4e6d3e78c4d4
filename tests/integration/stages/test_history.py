"""What stages remember: work that was done before, but not last, is done again, once."""

from __future__ import annotations

import pytest

from barecount_assets.stages import history
from resources.runners.stage import Stage, StageReceipt
from resources.runtime.database import Database, fetch
from resources.trust import ledger

TENANT, PIPELINE = "acme", "sales"


@pytest.mark.parametrize("stage", [Stage.CALENDAR, Stage.NORMALIZATION, Stage.KPI_BUILD, Stage.PUBLISH])
def test_what_comes_back_to_an_earlier_state_is_done_again_once(database: Database, stage: Stage) -> None:
    with database.connect(autocommit=True) as connection:
        fetch(connection, "select platform.register_tenant($1, 'Acme', 'h')", (TENANT,))

        def bring_to(state: str) -> bool:
            """What a stage does; returns whether there was work."""
            last = history.newest(connection, TENANT, PIPELINE, stage)
            identity = {"stage": stage, "state": state}
            token = history.token_for(connection, identity, last, TENANT, PIPELINE, stage)
            if last is not None and last.run_token == token:
                return False
            number = history.run_number(connection, TENANT, PIPELINE, stage, token, "manifest", "code")
            with connection.transaction():
                history.finish(connection, StageReceipt(stage, TENANT, PIPELINE, token, changed=True), number, identity,
                               evidence={"state": state})
            return True

        worked = [bring_to(state) for state in ("first", "first", "second", "second", "first", "first", "second",
                                                "second", "first")]
        assert worked == [True, False, True, False, True, False, True, False, True]
        assert ledger.verify(connection, TENANT).findings == ()
