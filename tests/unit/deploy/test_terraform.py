"""Terraform, as far as that goes without AWS: it parses, its parts fit, and it makes what the platform names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from moto.server import ThreadedMotoServer

from resources.runners.stage import Stage

PROJECT = Path(__file__).resolve().parents[3]
ROOT = PROJECT / "deploy/terraform"
MODULES = sorted(path for path in (ROOT / "modules").iterdir() if path.is_dir())
PLACES = [ROOT, *MODULES]
ENVIRONMENTS = ("dev", "prod")
by_name = pytest.mark.parametrize("place", PLACES, ids=lambda path: path.name)


def text(place: Path) -> str:
    """The code of one module, without comments."""
    return "\n".join(re.sub(r"(^|\s)#[^\n]*", r"\1", path.read_text("utf-8")) for path in sorted(place.glob("*.tf")))


@cache
def blocks(place: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for path in sorted(place.glob("*.tf")):
        for kind, items in hcl2.loads(path.read_text("utf-8")).items():
            if isinstance(items, list):
                found.setdefault(kind, []).extend(items)
    return found


def unquoted(value: Any) -> Any:
    return value.strip('"') if isinstance(value, str) else value


def labelled(place: Path, kind: str) -> dict[str, dict[str, Any]]:
    return {unquoted(name): body for block in blocks(place).get(kind, ()) for name, body in block.items()
            if not name.startswith("__")}


def resources(place: Path, kind: str = "resource") -> Iterator[tuple[str, str, dict[str, Any]]]:
    for block in blocks(place).get(kind, ()):
        for of_type, named in block.items():
            if not of_type.startswith("__"):
                yield from ((unquoted(of_type), unquoted(name), body) for name, body in named.items()
                            if not name.startswith("__"))


def statements() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement of every policy document, dynamic ones too."""
    for place in PLACES:
        for of_type, name, body in resources(place, "data"):
            if of_type == "aws_iam_policy_document":
                yield from ((name, one) for one in body.get("statement", ()))
                for dynamic in body.get("dynamic", ()):
                    for kind, one in dynamic.items():
                        if unquoted(kind) == "statement":
                            yield from ((name, content) for content in one["content"])


@by_name
def test_every_variable_is_described_and_used_and_every_used_one_is_declared(place: Path) -> None:
    declared = labelled(place, "variable")
    assert [name for name, body in declared.items() if not body.get("description") or not body.get("type")] == []
    code = text(place)
    outside = re.sub(r'variable "\w+" \{.*?\n\}', "", code, flags=re.DOTALL)
    assert set(re.findall(r"\bvar\.(\w+)", outside)) == set(declared)


def test_variables_of_the_root_are_validated_where_a_type_does_not_say_it_all() -> None:
    bare = {name for name, body in labelled(ROOT, "variable").items() if "validation" not in body}
    assert bare <= {"protected"}


@by_name
def test_every_output_is_described(place: Path) -> None:
    assert [name for name, body in labelled(place, "output").items() if not body.get("description")] == []


@by_name
def test_every_local_and_resource_that_is_referred_to_exists(place: Path) -> None:
    code = text(place)
    known = {name for block in blocks(place).get("locals", ()) for name in block if not name.startswith("__")}
    assert set(re.findall(r"\blocal\.(\w+)", code)) <= known
    made = {(kind, name) for kind, name, _ in resources(place)}
    read = {(kind, name) for kind, name, _ in resources(place, "data")}
    referred = set(re.findall(r"(?<![\w.\"])((?:data\.)?aws_\w+)\.(\w+)", code))
    for kind, name in referred:
        where = read if kind.startswith("data.") else made
        assert (kind.removeprefix("data."), name) in where, f"{kind}.{name}"


def test_modules_are_given_exactly_their_variables_and_asked_only_for_their_outputs() -> None:
    for name, body in labelled(ROOT, "module").items():
        module = (ROOT / unquoted(body["source"])).resolve()
        given = {key for key in body if not key.startswith("__")} - {"source"}
        variables = labelled(module, "variable")
        needed = {key for key, declared in variables.items() if "default" not in declared}
        assert given <= set(variables) and needed <= given, name
    for module, output in re.findall(r"\bmodule\.(\w+)\.(\w+)", text(ROOT)):
        assert output in labelled(ROOT / "modules" / module, "output"), f"module.{module}.{output}"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_sets_only_variables_that_there_are(environment: str) -> None:
    found = hcl2.loads((ROOT / f"aws-{environment}.tfvars").read_text("utf-8"))
    assert {name for name in found if not name.startswith("__")} <= set(labelled(ROOT, "variable"))
    assert unquoted(found["environment"]) == environment
    assert (ROOT / f"backends/aws-{environment}.s3.tfbackend").is_file()


def test_no_wildcard_action_is_allowed() -> None:
    checked = 0
    for name, statement in statements():
        if unquoted(statement.get("effect", "Allow")) == "Deny":
            continue
        actions = statement["actions"]
        for action in actions if isinstance(actions, list) else [actions]:
            assert "*" not in action, f"{name}: {action}"
            checked += 1
    assert checked > 80
    wild = [match for place in PLACES for match in re.findall(r'"(?:\*|\w+:\*)"', text(place)) if match != '"*"']
    assert wild == ['"s3:*"']  # of the statement that denies what is not encrypted


def test_where_the_resource_is_a_wildcard_the_action_takes_none_or_a_condition_limits_it() -> None:
    reads = re.compile(r":(Describe|List|Get|BatchGet)")
    without_resource = {"ecr:GetAuthorizationToken", "ssm:CancelCommand", "cloudwatch:PutMetricData"}
    for name, statement in statements():
        if "resources" not in statement or [unquoted(one) for one in statement["resources"]] != ["*"]:
            continue
        for action in (unquoted(one) for one in statement["actions"]):
            agent = action.startswith(("ssmmessages:", "ec2messages:")) or action == "ssm:UpdateInstanceInformation"
            interface = name == "network" and action.startswith("ec2:")
            assert name == "key" or agent or interface or reads.search(action) or action in without_resource, (
                f"{name}: {action}")


def test_the_internet_is_let_out_for_the_public_profile_and_the_services_alone() -> None:
    network = ROOT / "modules/network"
    open_rules = {name for kind, name, body in resources(network) if kind == "aws_vpc_security_group_egress_rule"
                  and unquoted(body.get("cidr_ipv4", "")) == "0.0.0.0/0"}
    assert open_rules == {"public_to_internet", "services_to_https", "services_to_mail"}
    open_ingress = [name for kind, name, body in resources(network)
                    if kind == "aws_vpc_security_group_ingress_rule" and "cidr_ipv4" in body]
    assert open_ingress == []
    rule = next(body for _, name, body in resources(network) if name == "public_to_internet")
    assert 'profile["public_vpc_egress"]' in rule["security_group_id"]


def test_only_edge_and_nat_have_a_route_to_the_internet() -> None:
    routed = {re.search(r"aws_route_table\.(\w+)", body["route_table_id"])[1]  # type: ignore[index]
              for kind, _, body in resources(ROOT / "modules/network") if kind == "aws_route"}
    assert routed == {"edge", "out"}


def test_buckets_are_locked_encrypted_and_closed() -> None:
    storage = ROOT / "modules/storage"
    found = {kind: body for kind, _, body in resources(storage)}
    for kind in ("public_access_block", "server_side_encryption_configuration", "versioning", "ownership_controls",
                 "policy"):
        assert found[f"aws_s3_bucket_{kind}"]["for_each"] == "${var.bucket_names}", kind
    block = found["aws_s3_bucket_public_access_block"]
    assert all(block[name] is True for name in (
        "block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"))
    locks = next(block["locks"] for block in blocks(storage)["locals"])
    assert {use: unquoted(lock["mode"]) for use, lock in locks.items() if not use.startswith("__")} == {
        "raw": "GOVERNANCE", "evidence": "COMPLIANCE"}
    assert found["aws_s3_bucket_object_lock_configuration"]["for_each"] == "${local.locks}"


def test_what_holds_data_is_encrypted() -> None:
    assert {kind: body for kind, _, body in resources(ROOT / "modules/database")}[
        "aws_db_instance"]["storage_encrypted"] is True
    assert {kind: body for kind, _, body in resources(ROOT / "modules/storage")}[
        "aws_efs_file_system"]["encrypted"] is True


def test_every_name_of_the_environments_comes_from_the_environments() -> None:
    """Terraform reads the files that the platform reads; what it makes has the names that they declare."""
    compute, network = ROOT / "modules/compute", ROOT / "modules/network"
    named = {kind: body for kind, _, body in resources(compute)}
    assert named["aws_ecs_cluster"]["name"] == "${var.cluster_name}"
    assert named["aws_launch_template"]["name"] == "${var.launch_template_name}"
    assert named["aws_lambda_function"]["function_name"] == "${each.key}"
    assert named["aws_glue_job"]["name"] == "${each.key}"
    stage = next(body for _, name, body in resources(compute) if name == "stage" and "family" in body)
    assert stage["family"] == "${var.task_definition_name}"
    groups = next(body for _, name, body in resources(network) if name == "profile")
    assert groups["for_each"] == "${var.security_groups}" and groups["tags"]["Name"] == "${each.value}"
    subnets = next(body for kind, _, body in resources(network) if kind == "aws_subnet")
    assert subnets["tags"]["Name"] == "${each.key}"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_is_one_that_terraform_can_build(environment: str) -> None:
    spec = yaml.safe_load((PROJECT / f"deploy/environments/aws-{environment}.yaml").read_text("utf-8"))["spec"]
    assert {name: backend["backend"] for name, backend in spec["classes"].items()} == {
        "serverless": "lambda", "container": "fargate", "managed_etl": "glue", "dedicated_compute": "ec2"}
    assert spec["tags"]["product"] == "barecount"  # what permissions to end instances ask for
    services = set(re.findall(r'"([\w.]+)"', re.search(r"interface_services.*?\)\)", text(ROOT / "modules/network"),
                                                       re.DOTALL)[0])) | {"s3"}  # type: ignore[index]
    for profile, network in spec["networks"].items():
        if "queue" in network:
            continue
        assert len(network["security_groups"]) == 1, profile
        assert all(re.search("-[ab]$", name) for name in network["subnets"]), profile
        for endpoint in network.get("endpoints", ()):
            service, region, *_ = endpoint.split(".")
            assert service in services and region == spec["region"]


def test_every_stage_has_a_role_of_its_own_with_the_name_that_a_task_asks_for() -> None:
    stages = {stage.value.replace("_", "-") for stage in Stage}
    declared = next(block["stages"] for block in blocks(ROOT / "modules/declared")["locals"] if "stages" in block)
    assert {unquoted(name) for name in declared} == stages
    statements = next(block["stage_statements"] for block in blocks(ROOT / "modules/security")["locals"]
                      if "stage_statements" in block)
    assert {unquoted(name) for name in statements if not name.startswith("__")} == stages
    role = next(body for kind, name, body in resources(ROOT / "modules/security")
                if (kind, name) == ("aws_iam_role", "stage"))
    assert unquoted(role["name"]) == "${var.name}-${each.key}"
    backends = next(block["backends"] for block in blocks(ROOT / "modules/security")["locals"] if "backends" in block)
    for environment in ENVIRONMENTS:
        spec = yaml.safe_load((PROJECT / f"deploy/environments/aws-{environment}.yaml").read_text("utf-8"))["spec"]
        cluster = spec["classes"]["container"]["cluster"]
        for declared in spec["classes"].values():
            assert declared["backend"] in {unquoted(name) for name in backends}
            assert declared["stage_role"] == f"{cluster}-{declared['backend']}"


def test_instances_have_what_the_backend_looks_for() -> None:
    script = (ROOT / "modules/compute/instance.sh.tftpl").read_text("utf-8")
    assert "/usr/local/bin/barecount-stage" in script and "touch /run/barecount-ready" in script
    backend = (PROJECT / "resources/runners/backends/ec2.py").read_text("utf-8")
    assert '"/run/barecount-ready"' in backend and "barecount-stage {" in backend


def test_entry_points_of_functions_and_jobs_exist() -> None:
    entry = next(block for block in blocks(ROOT)["locals"] if "function_handler" in block)
    module, _, function = unquoted(entry["function_handler"]).rpartition(".")
    source = (PROJECT / module.replace(".", "/")).with_suffix(".py").read_text("utf-8")
    assert f"def {function}(" in source
    assert (ROOT / unquoted(entry["glue_script"]).replace("${path.root}/", "")).is_file()


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
def test_terraform_finds_its_own_format() -> None:
    answer = subprocess.run(["terraform", "fmt", "-check", "-recursive", str(ROOT)], capture_output=True, text=True,
                            check=False)
    assert answer.returncode == 0, answer.stdout


PLUGINS = os.environ.get("BARECOUNT_TERRAFORM_PLUGINS")


@pytest.mark.skipif(shutil.which("terraform") is None or not PLUGINS,
                    reason="needs terraform, and the AWS provider in the folder BARECOUNT_TERRAFORM_PLUGINS: "
                           "`make terraform PLUGINS=FOLDER`")
@pytest.mark.parametrize("environment", [f"aws-{name}" for name in ENVIRONMENTS])
def test_an_environment_is_valid_and_planned_from_nothing(environment: str, tmp_path: Path) -> None:
    for part in ("deploy", "contracts"):
        shutil.copytree(PROJECT / part, tmp_path / part)
    folder = tmp_path / "deploy" / "terraform"
    (folder / "backend_override.tf").write_text('terraform {\n  backend "local" {}\n}\n')
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {**os.environ, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "none",
                 "AWS_SECRET_ACCESS_KEY": "none", "TF_VAR_account_id": "123456789012", "TF_VAR_owner": "owner",
                 "TF_VAR_image": "repository@sha256:" + 64 * "0", "TF_IN_AUTOMATION": "true"}

    def terraform(*words: str) -> str:
        done = subprocess.run(["terraform", *words], cwd=folder, env=variables, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, f"{words[0]}: {done.stderr[-3000:]}"
        return done.stdout

    try:
        terraform("init", "-input=false", f"-plugin-dir={PLUGINS}")
        terraform("validate")
        terraform("plan", "-input=false", f"-var-file={environment}.tfvars", "-out=plan")
        planned = json.loads(terraform("show", "-json", "plan"))
    finally:
        server.stop()
    changes = [change for change in planned["resource_changes"] if change["mode"] == "managed"]
    assert {tuple(change["change"]["actions"]) for change in changes} == {("create",)}
    roles = {change["change"]["after"]["name"] for change in changes if change["type"] == "aws_iam_role"}
    name = planned["planned_values"]["outputs"]["cluster"]["value"]
    assert {f"{name}-{backend}-{stage.replace('_', '-')}" for backend in ("lambda", "fargate", "glue", "ec2")
            for stage in map(str, Stage)} <= roles
