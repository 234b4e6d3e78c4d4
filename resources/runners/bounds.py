"""Where work may run: what a tenant declared for its data, and what the data's classification asks of a network.

Policies are asked about a run, by the names a manifest uses. Here a stage is held against what these names are in the
environment, right before it starts, whoever started it: a profile named private that is public is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from resources.host.runner_catalog import Environment, Network
from resources.host.tenants import RunnerBounds
from resources.runners.stage import StageSpec
from resources.runtime.declared import listed
from resources.runtime.errors import BareCountError, ErrorCode


@dataclass(frozen=True)
class Bounds:
    """What limits the place of a stage: the tenant's declaration, and the strictest classification of a column."""

    tenant: RunnerBounds
    classification: str

    def problems(self, spec: StageSpec, network: Network, environment: Environment) -> list[str]:
        """Everything that speaks against the place."""
        profile, region, wrong = spec.placement.network_profile, environment.spec.region, []
        if self.tenant.network_profiles is not None and profile not in self.tenant.network_profiles:
            wrong.append(f"network profile {profile} is not declared for the tenant, allowed: "
                         f"{listed(self.tenant.network_profiles)}")
        if self.tenant.regions is not None and region is not None and region not in self.tenant.regions:
            wrong.append(f"region {region} is outside of the tenant's residency, allowed: "
                         f"{listed(self.tenant.regions)}")
        if self.classification not in network.takes:
            wrong.append(f"{self.classification} data may not be on network profile {profile}, which takes: "
                         f"{listed(network.takes)}")
        return wrong

    def check(self, spec: StageSpec, network: Network, environment: Environment) -> None:
        """Raises BareCountError runner.not_allowed with everything that speaks against the place."""
        if wrong := self.problems(spec, network, environment):
            raise BareCountError(
                ErrorCode.RUNNER_NOT_ALLOWED,
                f"{spec.stage} of {spec.pipeline} for {spec.tenant_id} may not run in environment {environment.name}: "
                f"{'; '.join(wrong)}; nothing was started",
                hint="change the manifest's runner, or what contracts/tenants and deploy/environments declare",
                details={"network_profile": spec.placement.network_profile, "region": environment.spec.region,
                         "classification": self.classification},
            )
