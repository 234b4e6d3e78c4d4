"""What goes into a runner and what comes back: plain, serialisable data.

A `StageSpec` names a piece of work; a `StageReceipt` says what became of it. Both survive JSON, so that the same
call serves a function in this process, a process, and a machine in a cloud.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from resources.trust.ledger import canonical


class Stage(enum.StrEnum):
    """What can be handed to a runner. `calendar` prepares the reference table the KPI build reads."""

    INGESTION = "ingestion"
    CALENDAR = "calendar"
    NORMALIZATION = "normalization"
    KPI_BUILD = "kpi_build"
    PUBLISH = "publish"


@dataclass(frozen=True)
class Placement:
    """How a manifest wants its stages run: class, size and network profile, never a machine."""

    runner_class: str
    size: str
    network_profile: str


@dataclass(frozen=True)
class StageSpec:
    """A piece of work.

    Attributes:
        stage: which of the stages.
        tenant_id: whose data.
        pipeline: name of the manifest.
        placement: declared runner class, size and network profile.
        source: name of the source, for ingestion.
        window: inclusive ISO dates (start, end), for ingestion.
        source_paths: paths given on the command line, by source name; they replace the manifest's.
        probe: only find out whether there is anything to do; the receipt's `changed` tells. Nothing is written.
    """

    stage: Stage
    tenant_id: str
    pipeline: str
    placement: Placement
    source: str | None = None
    window: tuple[str, str] | None = None
    source_paths: Mapping[str, str] = field(default_factory=dict)
    probe: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StageSpec:
        """Inverse of `to_json`."""
        return cls(
            **{
                **document,
                "stage": Stage(document["stage"]),
                "placement": Placement(**document["placement"]),
                "window": tuple(document["window"]) if document.get("window") else None,
            }
        )


@dataclass(frozen=True)
class CheckOutcome:
    """One check a stage made: name, verdict, whether a failure stops what follows, and what it saw.

    `asset` is the dataset, GDP or KPI it is about.
    """

    name: str
    asset: str
    passed: bool
    blocking: bool
    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """One thing a stage left: name, content hash (SHA-256, hex), rows, and further facts for people."""

    name: str
    content_sha256: str
    rows: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageReceipt:
    """What became of a piece of work.

    Attributes:
        run_token: identity of the work: same token, same output.
        changed: False when everything was there already and nothing was done.
        counts: received, accepted, quarantined, landed, and the like.
        runner: class, backend and software that did it.
        seconds: wall time.
    """

    stage: Stage
    tenant_id: str
    pipeline: str
    run_token: str
    changed: bool
    counts: Mapping[str, int] = field(default_factory=dict)
    outputs: Sequence[Output] = ()
    checks: Sequence[CheckOutcome] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    runner: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StageReceipt:
        """Inverse of `to_json`."""
        return cls(
            **{
                **document,
                "stage": Stage(document["stage"]),
                "outputs": tuple(Output(**item) for item in document["outputs"]),
                "checks": tuple(CheckOutcome(**item) for item in document["checks"]),
            }
        )


def run_token(**identity: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of what identifies a piece of work."""
    return hashlib.sha256(canonical(identity)).hexdigest()


def iso_window(start: dt.date, end: dt.date) -> tuple[str, str]:
    """The window of a spec."""
    return start.isoformat(), end.isoformat()
