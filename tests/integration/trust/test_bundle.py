"""The export bundle: verified by its own script with nothing of ours, and every change to it is found."""

from __future__ import annotations

import ast
import base64
import datetime as dt
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import bundle, checkpoints, ledger
from resources.trust.bundle import Selection
from resources.trust.verify import Checkpoint, Key, leaf_hash, verify_bundle
from tests.integration.trust.conftest import CHANGES, Bodies, Log, edit

ENTRIES = 600  # three tiles
MARKUP = '<script>alert("x")</script> & \u2713'


@pytest.fixture
def signed(log: Log) -> Log:
    """Entries in several sections, checkpoints along the way, and a rotation."""
    log.append(300)
    log.sign()
    log.append(200, kind="gate.passed")
    checkpoints.rotate(log.database, log.keys, "acme")
    with log.database.transaction() as connection:
        ledger.append(connection, ledger.Entry("acme", "test.happened", MARKUP, "token", {"markup": MARKUP}))
    log.append(ENTRIES - 503)
    log.sign()
    return log


def export(
    log: Log, path: Path, selection: Selection | None = None, kept: tuple[Checkpoint, ...] = ()
) -> bundle.Bundle:
    return bundle.export(log.database, log.keys, "acme", path, selection or Selection(), kept)


@pytest.fixture
def whole(signed: Log, tmp_path: Path) -> Path:
    """A bundle of everything."""
    return export(signed, tmp_path / "whole.zip").path


def unpack(path: Path) -> Path:
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def run_verifier(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As an outsider does: isolated from the environment, elsewhere, in a process of its own."""
    return subprocess.run([sys.executable, "-I", str(script), *arguments], cwd="/", capture_output=True, text=True,
                          env={"PATH": ""}, check=False)


# --- What is verified ----------------------------------------------------------------------------------------------


def test_the_bundle_is_verified_by_its_own_script(whole: Path, signed: Log) -> None:
    folder = unpack(whole)
    for arguments in ((), (str(whole),), (str(folder),)):
        done = run_verifier(folder / "verify.py", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{ENTRIES} entries of acme, numbers 1 to {ENTRIES}, none left out" in done.stdout
        assert "VERIFIED    in itself; compare the key" in done.stdout
    done = run_verifier(folder / "verify.py", "--key", signed.key().text, "--json")
    document = json.loads(done.stdout)
    assert document["ok"] and document["trusted_up_to"] == document["size"] == ENTRIES


def test_the_verifier_imports_nothing_but_the_standard_library_and_cryptography(whole: Path) -> None:
    source = (unpack(whole) / "verify.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))  # auditors' machines are not ours
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"cryptography"}
    assert not {"socket", "urllib", "http", "ssl", "subprocess"} & {name.partition(".")[0] for name in names}


def test_the_entries_are_the_canonical_bodies_in_order(whole: Path, signed: Log) -> None:
    with zipfile.ZipFile(whole) as archive:
        assert archive.read("entries.jsonl").decode() == "".join(f"{body}\n" for body in signed.bodies())


def test_the_same_evidence_gives_the_same_bytes(signed: Log, tmp_path: Path) -> None:
    first = export(signed, tmp_path / "one.zip")
    second = export(signed, tmp_path / "two.zip")
    assert first.sha256 == second.sha256 == hashlib.sha256((tmp_path / "two.zip").read_bytes()).hexdigest()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_selection_is_proven_and_says_that_it_is_one(signed: Log, tmp_path: Path) -> None:
    written = export(signed, tmp_path / "tests.zip", Selection(sections=("test",)))
    result = verify_bundle(written.path, [signed.key()])
    assert result.ok, result.problems
    assert (written.entries, result.facts["complete"]) == (ENTRIES - 200, False)
    assert result.facts["selection"] == {"from": None, "to": None, "sections": ["test"]}
    with zipfile.ZipFile(written.path) as archive:
        kinds = {json.loads(line)["kind"] for line in archive.read("entries.jsonl").splitlines()}
    assert kinds == {"test.happened", "signing_key.announced"}


def test_days_are_selected_in_utc_with_both_ends(signed: Log, tmp_path: Path) -> None:
    today = dt.datetime.now(dt.UTC).date()
    written = export(signed, tmp_path / "days.zip", Selection(today - dt.timedelta(1), today))
    assert written.entries == ENTRIES
    with pytest.raises(BareCountError) as caught:
        export(signed, tmp_path / "none.zip", Selection(today + dt.timedelta(1)))
    assert caught.value.code is ErrorCode.EVIDENCE_MISSING
    assert not (tmp_path / "none.zip").exists()


def test_entries_that_no_checkpoint_covers_yet_are_signed_first(signed: Log, tmp_path: Path) -> None:
    signed.append(5)
    written = export(signed, tmp_path / "new.zip")
    assert (written.entries, written.checkpoint.size) == (ENTRIES + 5, ENTRIES + 5)
    assert verify_bundle(written.path, [signed.key()]).ok


def test_a_key_from_before_the_rotation_is_enough(signed: Log, whole: Path) -> None:
    with signed.database.connect() as connection:
        old = checkpoints.announcements(connection, "acme")[0].key
    assert old != signed.key()
    result = verify_bundle(whole, [old])
    assert result.ok and result.facts["signed_by"] == signed.key().text


def test_a_key_that_did_not_sign_is_refused(whole: Path, signed: Log) -> None:
    for key in (Key("barecount/acme", bytes(range(32))), Key("barecount/globex", signed.key().public)):
        done = run_verifier(unpack(whole) / "verify.py", "--key", key.text)
        assert done.returncode == 1 and "not signed by a key you trust" in done.stdout


def test_the_page_is_whole_in_itself_and_shows_markup_as_text(whole: Path) -> None:
    page = (unpack(whole) / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; \u2713" in page
    assert "<script" not in page and "default-src 'none'" in page
    assert "http://" not in page and "https://" not in page and "src=" not in page


# --- Against what the reader kept ----------------------------------------------------------------------------------


def test_a_kept_checkpoint_is_found_in_the_history(signed: Log, whole: Path, tmp_path: Path) -> None:
    with signed.database.connect() as connection:
        kept = checkpoints.all_of(connection, "acme")[0]
    (tmp_path / "kept.checkpoint").write_bytes(kept.raw)
    done = run_verifier(unpack(whole) / "verify.py", "--checkpoint", str(tmp_path / "kept.checkpoint"))
    assert done.returncode == 0, done.stdout
    assert f"VERIFIED    up to entry {kept.size} against your checkpoint" in done.stdout


def test_a_kept_checkpoint_that_is_no_longer_on_record_is_proven_when_asked_for(signed: Log, tmp_path: Path) -> None:
    with signed.database.connect() as connection:
        kept = checkpoints.all_of(connection, "acme")[0]
    signed.tamper(f"delete from platform.checkpoint where size = {kept.size}")
    result = verify_bundle(export(signed, tmp_path / "without.zip").path, [], [kept])
    assert [problem.where for problem in result.problems] == ["your checkpoint"]
    assert "ask for one" in result.problems[0].message
    assert verify_bundle(export(signed, tmp_path / "with.zip", kept=(kept,)).path, [], [kept]).ok


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_rehash_signed_anew_is_found_by_what_the_reader_kept(
    log: Log, tmp_path: Path, change: Callable[[Bodies], Bodies]
) -> None:
    log.append(10)
    kept, key = log.sign(), log.key()
    log.append(5)
    log.rewrite(lambda bodies: [*change(bodies[:10]), *bodies[10:]], forget=True)
    log.tamper("delete from platform.signing_key")
    log.rewrite(lambda bodies: [body for body in bodies if "signing_key" not in body])
    shutil.rmtree(log.keys.folder)
    written = export(log, tmp_path / "forged.zip")
    assert verify_bundle(written.path).ok, "in itself it is whole"
    assert not verify_bundle(written.path, [key]).ok
    result = verify_bundle(written.path, [], [kept])
    assert any("rewritten" in problem.message or "no proof" in problem.message or "cut off" in problem.message
               for problem in result.problems)


def test_a_fork_signed_by_the_right_key_is_found_by_a_kept_checkpoint(log: Log, tmp_path: Path) -> None:
    log.append(10)
    kept = log.sign()
    log.rewrite(edit, forget=True)
    shutil.rmtree(log.keys.memory)
    log.append(1)
    log.sign()
    written = export(log, tmp_path / "fork.zip")
    assert verify_bundle(written.path, [log.key()]).ok
    assert not verify_bundle(written.path, [log.key()], [kept]).ok
    with pytest.raises(BareCountError, match="not of the same history"):
        export(log, tmp_path / "asked.zip", kept=(kept,))


def test_a_bundle_older_than_the_kept_checkpoint_is_said_to_be_so(signed: Log, whole: Path) -> None:
    signed.append(1)
    result = verify_bundle(whole, [], [signed.sign()])
    assert "the bundle is older than your checkpoint" in result.problems[0].message


@pytest.mark.parametrize("change", CHANGES)
def test_a_ledger_that_is_not_what_was_signed_is_not_exported(
    log: Log, tmp_path: Path, change: Callable[[Bodies], Bodies]
) -> None:
    log.append(10)
    log.sign()
    log.rewrite(change)
    with pytest.raises(BareCountError) as caught:
        export(log, tmp_path / "broken.zip")
    assert caught.value.code is ErrorCode.EVIDENCE_BROKEN
    assert not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".*.tmp"))


def test_an_entry_edited_under_intact_tiles_is_not_exported(signed: Log, tmp_path: Path) -> None:
    signed.tamper("update platform.evidence set body = replace(body, 'thing 40', 'thing 41') where seq = 40")
    with pytest.raises(BareCountError, match="entry 40 is not the one that was signed"):
        export(signed, tmp_path / "edited.zip")


# --- Tampering with a bundle ---------------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repack(files: dict[str, bytes], path: Path, *, manifest: bool = True) -> Path:
    """A zip of the files; with `manifest`, the manifest is made to fit, as a forger without the key can do."""
    if manifest:
        document = json.loads(files["manifest.json"])
        document["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items() if not name.startswith("manifest.")}
        files = {**files, "manifest.json": json.dumps(document).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def changed(data: bytes) -> Iterator[bytes]:
    middle = len(data) // 2
    yield data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    yield data[:-1]
    yield data + b"\n"
    yield b""


@pytest.mark.parametrize("manifest", [False, True], ids=["as it is", "with a manifest made to fit"])
def test_every_file_counts(whole: Path, tmp_path: Path, manifest: bool) -> None:
    files = contents(whole)
    assert {"index.html", "entries.jsonl", "checkpoint", "keys.json", "verify.py", "manifest.json", "manifest.note",
            "proofs/inclusion.jsonl", "proofs/consistency.jsonl", "tile/0/000", "tile/0/002.p/88"} < set(files)
    assert sum(name.startswith("checkpoints/") for name in files) == 2 + 1  # rotation signs twice
    for name, data in files.items():
        if manifest and name == "manifest.json":
            continue
        for other in changed(data):
            path = repack({**files, name: other}, tmp_path / "tampered.zip", manifest=manifest)
            assert not verify_bundle(path).ok, f"{name} changed to {other[-20:]!r}"
        path = repack({n: d for n, d in files.items() if n != name}, tmp_path / "tampered.zip", manifest=manifest)
        assert not verify_bundle(path).ok, f"{name} removed"
    assert not verify_bundle(repack({**files, "extra.txt": b"x"}, tmp_path / "extra.zip", manifest=manifest)).ok


def test_the_file_at_fault_is_named(whole: Path) -> None:
    folder = unpack(whole)
    (folder / "tile" / "0" / "001").write_bytes(bytes(8192))
    (folder / "index.html").write_text("other")
    (folder / "proofs" / "note.txt").write_text("x")
    done = run_verifier(folder / "verify.py")
    assert done.returncode == 1 and "NOT VERIFIED" in done.stdout
    for name in ("tile/0/001", "index.html", "proofs/note.txt"):
        assert f"WRONG       {name}: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("change", CHANGES)
def test_forged_entries_are_found_even_with_tiles_and_manifest_made_to_fit(
    whole: Path, tmp_path: Path, change: Callable[[Bodies], Bodies]
) -> None:
    files = contents(whole)
    bodies = change(files["entries.jsonl"].decode().splitlines())
    leaves = b"".join(leaf_hash(body.encode()) for body in bodies)
    files["entries.jsonl"] = "".join(f"{body}\n" for body in bodies).encode()
    assert not verify_bundle(repack(files, tmp_path / "entries.zip")).ok
    for number in range(3):
        name = next(name for name in files if name.startswith(f"tile/0/00{number}"))
        files[name] = leaves[number * 8192 : (number + 1) * 8192]
    result = verify_bundle(repack(files, tmp_path / "tiles.zip"))
    assert any("not part of the checkpoint's tree" in p.message or "not entry" in p.message or "missing" in p.message
               for p in result.problems), result.problems


def test_a_checkpoint_signed_by_a_stranger_is_found(whole: Path, signed: Log, tmp_path: Path) -> None:
    files = contents(whole)
    stranger = signed.keys.generate("barecount/acme")
    text = Checkpoint.parse(files["checkpoint"]).note.text
    files["checkpoint"] = signed.keys.sign(stranger, text)
    keys = json.loads(files["keys.json"])
    keys[-1]["key"] = stranger.text
    files["keys.json"] = json.dumps(keys).encode()
    problems = verify_bundle(repack(files, tmp_path / "stranger.zip")).problems
    assert {"checkpoint", "keys.json"} <= {problem.where for problem in problems}


def test_two_files_of_one_name_are_refused(whole: Path, tmp_path: Path) -> None:
    path = repack(contents(whole), tmp_path / "twice.zip", manifest=False)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("index.html", "other")
    assert any("more than once" in problem.message for problem in verify_bundle(path).problems)


def test_a_hostile_manifest_is_a_finding_and_no_crash(whole: Path, tmp_path: Path) -> None:
    files = contents(whole)
    for document in (b"[]", b"{}", b"null", b'{"format": 1}', b"\xff", b"[" * 100_000,
                     files["manifest.json"].replace(b'"bytes"', b'"byte"'),
                     files["manifest.json"].replace(b'"files": {', b'"files": {"../../etc/passwd": {}, ')):
        path = repack({**files, "manifest.json": document}, tmp_path / "hostile.zip", manifest=False)
        assert not verify_bundle(path).ok
    inclusion = json.loads(files["proofs/inclusion.jsonl"].splitlines()[0])
    for bad in ({"tile": -1}, {"tile": 10**30}, {"tile": "0"}, {"tile": True}, {"entries": [[1, 10**12]]},
                {"entries": [[5, 1]]}, {"entries": None}, {"proof": ["AAAA"]}, {"proof": 7}):
        line = json.dumps({**inclusion, **bad}).encode() + b"\n"
        path = repack({**files, "proofs/inclusion.jsonl": line}, tmp_path / "hostile.zip")
        assert not verify_bundle(path).ok




@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_the_file_is_a_crash_or_passes_with_other_contents(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    original = whole.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path / "damaged.zip"
    path.write_bytes(original[:place] + damage + original[place + len(damage) :])
    if verify_bundle(path).ok:
        assert contents(path) == contents(whole)


# --- Usage ---------------------------------------------------------------------------------------------------------


def test_wrong_usage_is_exit_code_2(whole: Path, tmp_path: Path) -> None:
    script = unpack(whole) / "verify.py"
    for arguments in (("nowhere.zip",), ("--key", "nonsense"), ("--checkpoint", "nowhere"), ("--unknown",)):
        done = run_verifier(script, *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (tmp_path / "not.zip").write_text("text")
    assert run_verifier(script, str(tmp_path / "not.zip")).returncode == 1


def test_a_single_proof_is_verified_by_the_same_script(signed: Log, whole: Path, tmp_path: Path) -> None:
    script = unpack(whole) / "verify.py"
    with signed.database.connect() as connection:
        proof = checkpoints.prove(connection, "acme", 42)
    path = tmp_path / "entry.tlog-proof"
    path.write_bytes(proof.text())
    assert run_verifier(script, str(path)).returncode == 2, "nothing to trust it by"
    done = run_verifier(script, str(path), "--key", signed.key().text)
    assert done.returncode == 0 and "thing 42" in done.stdout, done.stdout
    entry = base64.b64encode(proof.body.replace("thing 42", "thing 43").encode())
    path.write_bytes(proof.text().replace(base64.b64encode(proof.body.encode()), entry))
    done = run_verifier(script, str(path), "--key", signed.key().text)
    assert done.returncode == 1 and "it is not entry 42" in done.stdout
