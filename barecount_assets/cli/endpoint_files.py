"""Writes the declaration of an endpoint from the command line, after checking it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from resources.governance.endpoints import Endpoint
from resources.runtime.errors import BareCountError, ErrorCode

if TYPE_CHECKING:
    from barecount_assets.stages.environment import StageEnvironment

_LISTS = ("recipients",)
_SCHEMA = "# yaml-language-server: $schema=../../../schemas/endpoint.schema.json\n"


@dataclass(frozen=True)
class EndpointFile:
    """A file to write. `fresh_secret`: name of a signing secret that must be made for it."""

    path: Path
    text: str
    fresh_secret: str | None


def plan(
    opened: StageEnvironment, tenant: str, name: str, adapter: str, settings: list[str], description: str
) -> EndpointFile:
    """What would be written. A webhook without a signing secret gets a fresh one.

    Raises:
        BareCountError: usage for what is not KEY=VALUE; declaration.invalid for what no endpoint may have;
            store.conflict when the file is there already.
    """
    owner = opened.declarations.tenant(tenant)
    path = opened.settings.project_dir / "contracts" / "actions" / "endpoints" / tenant / f"{name}.yaml"
    if path.exists():
        raise BareCountError(ErrorCode.STORE_CONFLICT, f"{path} is there already",
                             hint="change the file, then `barecount actions endpoints sync`")
    target: dict[str, Any] = {"adapter": adapter, **_settings(settings)}
    secret = name.replace("_", "-")
    fresh = adapter == "webhook" and "signing" not in target
    if fresh:
        target["signing"] = f"secret://{secret}#signing"
    document = {
        "apiVersion": "barecount/v1", "kind": "Endpoint",
        "metadata": {"name": name, "tenant": tenant,
                     "description": description or f"{adapter} of {owner.metadata.name}"},
        "spec": {"target": target},
    }
    try:
        Endpoint.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"] if step != adapter)
        raise BareCountError(
            ErrorCode.DECLARATION_INVALID, f"{where}: {first['msg']}",
            hint=f"see docs/delivery.md for what {adapter} takes; give it with --set KEY=VALUE") from error
    text = _SCHEMA + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return EndpointFile(path, text, secret if fresh else None)


def write(opened: StageEnvironment, tenant: str, file: EndpointFile) -> None:
    """Write the file, and take it back when it does not agree with everything else declared; then make its secret.

    Raises:
        BareCountError: declaration.invalid.
    """
    from resources.action.delivery.adapters import webhook
    from resources.governance import declarations
    from resources.trust.secrets import Secrets

    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.write_text(file.text, encoding="utf-8")
    findings = declarations.check(opened.settings.project_dir)
    if findings:
        file.path.unlink()
        raise BareCountError(ErrorCode.DECLARATION_INVALID, "\n".join(map(str, findings)),
                             hint="nothing was written; correct what is named and try again")
    if file.fresh_secret is not None:
        with opened.database.transaction() as connection:
            opened.register_tenant(connection, tenant)
        Secrets.of(opened.settings.data_dir, opened.database).keep(
            tenant, file.fresh_secret, {"signing": webhook.new_secret()})


def _settings(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise BareCountError(ErrorCode.USAGE, f"{pair!r} is not KEY=VALUE", hint="e.g. --set port=587")
        if key in _LISTS:
            found.setdefault(key, []).append(value)
        else:
            found[key] = yaml.safe_load(value) if value in ("true", "false") or value.isdecimal() else value
    return found
