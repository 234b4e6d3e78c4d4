"""Where work may run: class, size, network profile, classification and tenant, all of them, on the shipped policies."""

from __future__ import annotations

from itertools import product

import pytest

from resources.governance import declarations, policies
from resources.governance.contracts import CLASSIFICATIONS
from resources.governance.decision_points import RunStart, cost_class
from resources.host import runner_catalog
from resources.host.runner_catalog import SIZES, Network
from resources.host.tenants import RunnerBounds
from resources.runners.bounds import Bounds
from resources.runners.facade import RunnerFacade
from resources.runners.stage import Placement, Stage, StageSpec
from resources.runtime.errors import BareCountError, ErrorCode
from tests.conftest import PROJECT

DECLARED = declarations.load(PROJECT)
POLICIES = policies.PolicySet.of(DECLARED.policies)
ENVIRONMENT, SIZE_CATALOG = runner_catalog.read_environment(PROJECT, "aws-dev"), runner_catalog.read_sizes(PROJECT)

BY_SIZE = {  # what the policies say to a class in each of its sizes
    "serverless": {"small": "allow", "medium": "allow", "large": "allow", "xlarge": "require_approval"},
    "container": {"small": "allow", "medium": "allow", "large": "allow", "xlarge": "require_approval"},
    "managed_etl": {"small": "allow", "medium": "allow", "large": "warn", "xlarge": "require_approval"},
    "dedicated_compute": {"small": "allow", "medium": "allow", "large": "warn", "xlarge": "require_approval"},
}
TAKES = {  # how strictly data on a network profile may be classified
    "public_vpc_egress": {"public", "internal"},
    "private_vpc": {"public", "internal", "confidential", "restricted"},
    "privatelink": {"public", "internal", "confidential", "restricted"},
    "vpn": {"public", "internal", "confidential", "restricted"},
    "on_premise_agent": {"public", "internal", "confidential", "restricted"},
}
TENANTS = {  # status, and what the tenant lets its data be on, in the region of the environment
    "anywhere": ("active", RunnerBounds(), set(TAKES)),
    "off the internet": ("active", DECLARED.tenant("globex").spec.runners, set(TAKES) - {"public_vpc_egress"}),
    "elsewhere": ("active", RunnerBounds(regions=("ap-southeast-2",)), set()),
    "suspended": ("suspended", RunnerBounds(), set()),
}


def outcome(runner_class: str, size: str, profile: str, classification: str, tenant: str) -> str:
    """What becomes of a run: what the policies say, and `not allowed` where its stages would be refused."""
    status, bounds, _ = TENANTS[tenant]
    facts = RunStart(
        tenant="acme", pipeline="order_to_cash", tenant_status=status, runner_class=runner_class, runner_size=size,
        network_profile=profile, cost_class=cost_class(runner_class, size), classification=classification)
    effect = policies.evaluate(POLICIES, facts).effect
    facade = RunnerFacade(ENVIRONMENT, SIZE_CATALOG, nothing, bounds=lambda spec: Bounds(bounds, classification))
    try:
        facade.plan(StageSpec(Stage.KPI_BUILD, "acme", "order_to_cash", Placement(runner_class, size, profile)))
    except BareCountError as refused:
        assert refused.code is ErrorCode.RUNNER_NOT_ALLOWED and "nothing was started" in refused.message
        return effect if effect == "deny" else "not allowed"
    return effect


def expected(runner_class: str, size: str, profile: str, classification: str, tenant: str) -> str:
    status, _, profiles = TENANTS[tenant]
    if status != "active" or classification not in TAKES[profile]:
        return "deny"
    return BY_SIZE[runner_class][size] if profile in profiles else "not allowed"


def nothing(*_: object) -> None:
    raise AssertionError("started")


@pytest.mark.parametrize("runner_class", BY_SIZE)
@pytest.mark.parametrize("tenant", TENANTS)
def test_class_size_network_classification_and_tenant_decide_together(runner_class: str, tenant: str) -> None:
    assert set(ENVIRONMENT.spec.networks) == set(TAKES)
    for size, profile, classification in product(SIZES, TAKES, CLASSIFICATIONS):
        place = (runner_class, size, profile, classification, tenant)
        assert outcome(*place) == expected(*place), place


def test_a_network_called_private_that_is_public_takes_no_confidential_data() -> None:
    """Policies know names; what a name is, the environment says."""
    networks = {**ENVIRONMENT.spec.networks, "private_vpc": Network(public=True)}
    lying = ENVIRONMENT.model_copy(update={"spec": ENVIRONMENT.spec.model_copy(update={"networks": networks})})
    facade = RunnerFacade(lying, SIZE_CATALOG, nothing, bounds=lambda spec: Bounds(RunnerBounds(), "confidential"))
    spec = StageSpec(Stage.PUBLISH, "acme", "order_to_cash", Placement("container", "small", "private_vpc"))
    with pytest.raises(BareCountError, match="confidential data may not be on network profile private_vpc"):
        facade.plan(spec)


def test_a_refusal_says_everything_that_speaks_against_the_place() -> None:
    bounds = Bounds(RunnerBounds(network_profiles=("vpn",), regions=("ap-southeast-2",)), "restricted")
    spec = StageSpec(Stage.PUBLISH, "acme", "order_to_cash", Placement("container", "small", "public_vpc_egress"))
    with pytest.raises(BareCountError) as refused:
        RunnerFacade(ENVIRONMENT, SIZE_CATALOG, nothing, bounds=lambda _: bounds).plan(spec)
    for reason in ("public_vpc_egress is not declared for the tenant, allowed: vpn",
                   "region eu-west-1 is outside of the tenant's residency, allowed: ap-southeast-2",
                   "restricted data may not be on network profile public_vpc_egress"):
        assert reason in refused.value.message


def test_a_machine_of_ones_own_is_in_no_region() -> None:
    local = runner_catalog.read_environment(PROJECT, "local")
    bounds = Bounds(RunnerBounds(regions=("ap-southeast-2",)), "restricted")
    spec = StageSpec(Stage.PUBLISH, "acme", "order_to_cash", Placement("container", "small", "vpn"))
    assert RunnerFacade(local, SIZE_CATALOG, nothing, bounds=lambda _: bounds).plan(spec).identity["size"] == "small"
