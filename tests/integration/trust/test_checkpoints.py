"""Checkpoints: what is signed stays what it was, and whoever changes it is found out, the owner of the database too."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import psycopg
import pytest
from moto import mock_aws

from resources.runtime.database import fetch
from resources.runtime.errors import BareCountError, ErrorCode
from resources.trust import anchors, checkpoints
from resources.trust.signing import KeyStore
from resources.trust.verify import Checkpoint, Key, Note, verify_proof
from tests.conftest import barecount
from tests.integration.trust.conftest import CHANGES, Bodies, Log, edit, truncate

# --- Signing -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_a_signed_note_over_the_root_of_the_entries(log: Log) -> None:
    log.append(300)
    checkpoint = log.sign()
    lines = checkpoint.raw.decode().split("\n")
    assert lines[:2] == ["barecount/acme", "301"]  # the first one makes the key, which is an entry
    assert lines[3] == "" and lines[4].startswith("\u2014 barecount/acme ")
    assert log.key().signed(checkpoint.note)
    assert log.verify().root == checkpoint.root.hex()


def test_without_new_entries_the_newest_checkpoint_is_answered(log: Log) -> None:
    log.append(2)
    first = checkpoints.create(log.database, log.keys, "acme")
    again = checkpoints.create(log.database, log.keys, "acme")
    assert (first.created, again.created) == (True, False)
    assert again.checkpoint == first.checkpoint
    log.append(1)
    assert log.sign().size == 4


def test_signers_at_the_same_time_agree_on_one_key_and_one_checkpoint(log: Log) -> None:
    log.append(20)
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda _: log.sign(), range(4)))
    assert len(set(signed)) == 1
    with log.database.connect() as connection:
        assert len(checkpoints.announcements(connection, "acme")) == 1
        assert checkpoints.all_of(connection, "acme") == signed[:1]


def test_a_checkpoint_while_entries_are_appended_signs_what_was_there(log: Log) -> None:
    log.append(5)
    log.sign()
    with ThreadPoolExecutor(2) as pool:
        appending = [pool.submit(log.append, 40, kind=f"test.happened_{number}") for number in range(5)]
        signed = [log.sign() for _ in range(10)]
        assert [len(item.result()) for item in appending] == [40] * 5
    assert log.verify(*signed, log.sign()).intact


def test_private_keys_are_for_their_owner_alone(log: Log) -> None:
    log.append(1)
    log.sign()
    (path,) = log.keys.folder.glob("*.pem")
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.keys.folder.stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    log.append(1)
    with pytest.raises(BareCountError, match=r"can be read by others \(mode 640\)") as caught:
        log.sign()
    assert caught.value.code is ErrorCode.ACCESS_DENIED


def test_a_missing_or_foreign_private_key_is_said_and_nothing_is_recorded(log: Log) -> None:
    log.append(1)
    log.sign()
    log.append(1)
    (path,) = log.keys.folder.glob("*.pem")
    saved = path.read_bytes()
    path.unlink()
    with pytest.raises(BareCountError, match="cannot be read") as caught:
        log.sign()
    assert "rotate --lost" in (caught.value.hint or "")
    other = log.keys.generate("barecount/other")
    (log.keys.folder / f"barecount-other-{other.id}.pem").rename(path)
    with pytest.raises(BareCountError, match="is not that of"):
        log.sign()
    path.write_bytes(saved)
    assert log.sign().size == 3
    assert log.verify().checkpoints == 2


def test_an_unknown_tenant_is_refused(log: Log) -> None:
    with pytest.raises(BareCountError) as caught:
        log.sign("nobody")
    assert caught.value.code is ErrorCode.DECLARATION_UNKNOWN


def test_what_was_signed_can_only_be_added_to(log: Log) -> None:
    for table in ("evidence_tile", "signing_key", "checkpoint", "checkpoint_anchor"):
        for statement in (f"update platform.{table} set tenant_id = 'x'", f"delete from platform.{table}",
                          f"truncate platform.{table} cascade"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), log.database.connect() as connection:
                connection.execute(statement)
        with (pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"),
              psycopg.connect(log.database.admin_url) as connection):
            connection.execute(f"truncate platform.{table} cascade")


# --- Rotation ------------------------------------------------------------------------------------------------------


def test_after_a_rotation_old_checkpoints_hold_and_the_old_key_leads_to_the_new_one(log: Log) -> None:
    log.append(5)
    first, old = log.sign(), log.key()
    checkpoints.rotate(log.database, log.keys, "acme")
    log.append(5)
    last, new = log.sign(), log.key()
    assert old != new and new.signed(last.note) and not old.signed(last.note)
    result = log.verify(first, last, pinned=[old])
    assert result.intact, result.findings
    assert log.verify(first, last).intact
    with log.database.connect() as connection:
        assert checkpoints.prove(connection, "acme", 2).holds
        proof = checkpoints.consistency(connection, "acme", last, first)
        assert proof.holds and (proof.first, proof.second) == (first, last)


def test_a_pinned_key_that_was_not_handed_over_is_not_followed(log: Log) -> None:
    log.append(5)
    log.sign()
    stranger = KeyStore.of(log.keys.folder / "elsewhere", log.database).generate("barecount/acme")
    assert log.problems(pinned=[stranger]) == {"signature"}


def test_a_lost_key_is_replaced_without_its_word_and_only_when_it_is_lost(log: Log) -> None:
    log.append(5)
    log.sign()
    old = log.key()
    with pytest.raises(BareCountError, match="is not lost"):
        checkpoints.rotate(log.database, log.keys, "acme", lost=True)
    next(log.keys.folder.glob("*.pem")).unlink()
    checkpoints.rotate(log.database, log.keys, "acme", lost=True)
    assert log.verify().intact
    assert log.problems(pinned=[old]) == {"signature"}


def test_a_replaced_key_that_goes_on_signing_is_found(log: Log) -> None:
    log.append(5)
    log.sign()
    old = log.key()
    checkpoints.rotate(log.database, log.keys, "acme")
    log.append(3)
    last = log.sign()
    forged = Checkpoint.parse(log.keys.sign(old, last.note.text))
    assert log.problems(forged) == {"signature"}


def test_a_key_on_record_that_the_ledger_did_not_announce_is_found(log: Log) -> None:
    log.append(5)
    log.sign()
    stranger = log.keys.generate("barecount/acme")
    log.tamper(f"update platform.signing_key set public_key = '{stranger.text}', key_id = '{stranger.id}'")
    assert "key" in log.problems()


# --- Verification --------------------------------------------------------------------------------------------------


def test_an_untouched_ledger_holds_with_everything_that_was_ever_signed(log: Log) -> None:
    kept = []
    for count in (3, 300, 1, 400):
        log.append(count)
        kept.append(log.sign())
    result = log.verify(*kept)
    assert result.intact, result.findings
    assert (result.entries, result.checkpoints) == (705, 4)


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_rehash_is_found_by_a_recorded_checkpoint(log: Log, change: Callable[[Bodies], Bodies]) -> None:
    log.append(10)
    log.sign()
    log.rewrite(change)
    found = log.problems()
    assert ("truncated" if len(log.bodies()) < 11 else "rewritten") in found
    assert not found & {"edited", "deleted", "inserted", "broken chain", "tile"}, "the chain itself does not show it"


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_rehash_that_also_drops_the_record_is_found_by_a_kept_checkpoint(
    log: Log, change: Callable[[Bodies], Bodies]
) -> None:
    log.append(10)
    kept = log.sign()
    log.append(5)
    log.rewrite(change, forget=True)
    if change is not truncate:  # the last of the newer entries: nobody had seen it
        assert log.problems() == set()
        assert log.problems(kept) - {"signature"} == {"rewritten"}  # the key's announcement moved, too
    log.rewrite(lambda bodies: bodies[:9], forget=True)
    assert log.problems() == set()
    assert "truncated" in log.problems(kept)


def test_a_rehash_is_found_across_tiles_and_the_other_tenant_is_not_suspected(log: Log) -> None:
    log.append(600)
    log.append(600, "globex")
    kept = [log.sign(), log.sign("globex")]
    log.rewrite(lambda bodies: [body.replace('"number":300}', '"number":301}') for body in bodies], forget=True)
    assert log.problems(*kept) == {"rewritten"}
    assert log.verify(*kept, tenant="globex").intact


def test_a_history_signed_twice_is_a_fork(log: Log) -> None:
    log.append(10)
    kept = log.sign()
    log.rewrite(edit, forget=True)
    (memory,) = log.keys.memories("barecount/acme")
    memory.unlink()
    log.append(3)
    other = log.sign()
    assert log.problems() == set()
    found = log.verify(kept).findings
    assert [finding.problem for finding in found] == ["fork"]
    assert "both signed" in found[0].message
    with log.database.connect() as connection:
        assert not checkpoints.consistency(connection, "acme", kept, other).holds


def test_the_signer_does_not_sign_a_history_that_was_rewritten(log: Log) -> None:
    log.append(10)
    log.sign()
    log.append(2)
    log.rewrite(edit)
    with pytest.raises(BareCountError, match="are not those that were signed") as caught:
        log.sign()
    assert caught.value.code is ErrorCode.EVIDENCE_BROKEN


@pytest.mark.parametrize(("change", "said"), [(edit, "not those that were signed"),
                                              (lambda bodies: bodies[:8], "was cut off")])
def test_the_signer_remembers_what_it_signed_when_the_database_does_not(
    log: Log, change: Callable[[Bodies], Bodies], said: str
) -> None:
    log.append(10)
    log.sign()
    log.rewrite(change, forget=True)
    with pytest.raises(BareCountError, match=said) as caught:
        log.sign()
    assert str(log.keys.memory) in (caught.value.hint or "")


def test_what_was_signed_for_another_database_says_nothing_about_this_one(new_log: Callable[[], Log]) -> None:
    for count in (20, 10):
        log = new_log()
        log.append(count)
        assert log.sign().size == count + 1
        assert log.verify().intact


def test_edited_tiles_are_found_and_nothing_is_signed_over_them(log: Log) -> None:
    log.append(600)
    log.sign()
    log.tamper("update platform.evidence_tile set hashes = set_byte(hashes, 7, get_byte(hashes, 7) # 1), "
               "root = sha256(root) where tile = 1")
    findings = log.verify().findings
    assert [(finding.seq, finding.problem) for finding in findings] == [(257, "tile")]
    log.append(1)
    with pytest.raises(BareCountError) as caught:
        log.sign()
    assert caught.value.code is ErrorCode.EVIDENCE_BROKEN


def test_a_recorded_checkpoint_that_was_changed_or_removed_is_found(log: Log) -> None:
    log.append(5)
    first = log.sign()
    log.append(5)
    log.sign()
    log.tamper("update platform.checkpoint set root_hash = sha256(root_hash) where size = 6")
    assert log.problems() == {"checkpoint"}
    log.tamper("update platform.checkpoint set note = 'nothing' where size = 6")
    assert log.problems() == {"checkpoint"}
    log.tamper("delete from platform.checkpoint where size = 6")
    assert log.problems() == set()
    assert log.problems(first) == {"checkpoint"}


def test_a_forged_checkpoint_is_found(log: Log) -> None:
    log.append(5)
    checkpoint = log.sign()
    forged = Checkpoint.parse(checkpoint.raw.replace(b"\n6\n", b"\n5\n"))
    assert log.problems(forged) == {"signature", "rewritten"}
    assert log.problems(checkpoint._replace(raw=b"not a checkpoint")) == {"checkpoint"}


def test_a_checkpoint_of_another_tenant_says_nothing_about_this_one(log: Log) -> None:
    log.append(5)
    log.append(9, "globex")
    assert log.verify(log.sign("globex"), log.sign()).intact


# --- Proofs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(log: Log) -> Log:
    """300 entries and a checkpoint."""
    log.append(300)
    log.sign()
    return log


def test_every_entry_is_proven_and_the_proof_is_complete_in_itself(signed: Log) -> None:
    with signed.database.connect() as connection:
        for seq in (1, 255, 256, 257, 301):
            proof = checkpoints.prove(connection, "acme", seq)
            assert proof.holds
            result = verify_proof(proof.text(), [signed.key()])
            assert result.ok and result.facts["first"] == seq, result.problems
            assert not verify_proof(proof.text(), [Key("barecount/acme", bytes(32))]).ok


def test_an_edited_entry_is_not_proven(signed: Log) -> None:
    signed.tamper("update platform.evidence set body = replace(body, 'thing 40', 'thing 41') where seq = 40")
    with signed.database.connect() as connection:
        assert not checkpoints.prove(connection, "acme", 40).holds
        assert checkpoints.prove(connection, "acme", 41).holds


def test_an_entry_newer_than_the_newest_checkpoint_is_said_to_be_so(signed: Log) -> None:
    signed.append(1)
    with signed.database.connect() as connection:
        with pytest.raises(BareCountError, match="newer than the newest checkpoint") as caught:
            checkpoints.prove(connection, "acme", 302)
        assert caught.value.hint == "sign one: barecount evidence checkpoint --tenant acme"
        with pytest.raises(BareCountError, match="has no entry 303"):
            checkpoints.prove(connection, "acme", 303)


# --- Anchors -------------------------------------------------------------------------------------------------------


def test_each_checkpoint_is_one_file_written_once(signed: Log, tmp_path: Path) -> None:
    place = anchors.open_anchor(str(tmp_path / "anchor"))
    assert [item.created for item in anchors.anchor(signed.database, "acme", place)] == [True]
    signed.append(1)
    second = signed.sign()
    placed = anchors.anchor(signed.database, "acme", place)
    assert [item.name for item in placed] == [f"acme/000000000302-{second.signer}.checkpoint"]
    assert anchors.anchor(signed.database, "acme", place) == []
    files = sorted((tmp_path / "anchor" / "acme").iterdir())
    assert files[-1].read_bytes() == second.raw
    assert [path.stat().st_mode & 0o777 for path in files] == [0o444, 0o444]
    assert [witness.raw for witness in place.read("acme")] == [path.read_bytes() for path in files]


def test_a_crash_between_writing_and_recording_is_repeated_harmlessly(signed: Log, tmp_path: Path) -> None:
    place = anchors.open_anchor(str(tmp_path))
    anchors.anchor(signed.database, "acme", place)
    signed.tamper("delete from platform.checkpoint_anchor")
    assert [item.created for item in anchors.anchor(signed.database, "acme", place)] == [False]


def test_another_checkpoint_under_the_same_name_is_refused_as_a_fork(signed: Log, tmp_path: Path) -> None:
    place = anchors.open_anchor(str(tmp_path))
    (placed,) = anchors.anchor(signed.database, "acme", place)
    signed.tamper("delete from platform.checkpoint_anchor")
    target = tmp_path / placed.name
    target.chmod(0o644)
    target.write_text("other")
    with pytest.raises(BareCountError, match="two histories were signed") as caught:
        anchors.anchor(signed.database, "acme", place)
    assert caught.value.code is ErrorCode.EVIDENCE_BROKEN
    assert target.read_text() == "other"


def test_an_anchor_that_cannot_be_used_is_said_and_may_be_tried_again(signed: Log, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BareCountError) as caught:
        anchors.anchor(signed.database, "acme", anchors.open_anchor(str(tmp_path / "file")))
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.STORE_UNAVAILABLE, True)
    with pytest.raises(BareCountError, match="no such folder"):
        list(anchors.open_anchor(str(tmp_path / "nowhere")).read())


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"),
                        ("AWS_DEFAULT_REGION", "eu-west-2")):
        monkeypatch.setenv(name, value)
    with mock_aws():
        yield boto3.client("s3")


def bucket(s3, *, lock: bool) -> str:
    s3.create_bucket(Bucket="anchor", ObjectLockEnabledForBucket=lock,
                     CreateBucketConfiguration={"LocationConstraint": "eu-west-2"})
    return "s3://anchor/evidence"


def test_a_bucket_with_object_lock_keeps_checkpoints_from_everyone(signed: Log, s3) -> None:
    place = anchors.open_anchor(bucket(s3, lock=True), retain_days=30)
    (placed,) = anchors.anchor(signed.database, "acme", place)
    assert placed.created and placed.locked_until is not None
    found = s3.head_object(Bucket="anchor", Key=f"evidence/{placed.name}")
    assert found["ObjectLockMode"] == "COMPLIANCE"
    with signed.database.connect() as connection:
        recorded = fetch(connection, "select locked_until from platform.checkpoint_anchor")[0][0]
    assert recorded == placed.locked_until
    assert [witness.raw for witness in place.read("acme")] == [signed.sign().raw]


def test_a_bucket_with_a_rule_of_its_own_is_left_to_it(signed: Log, s3) -> None:
    location = bucket(s3, lock=True)
    s3.put_object_lock_configuration(Bucket="anchor", ObjectLockConfiguration={
        "ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 7}}})
    (placed,) = anchors.anchor(signed.database, "acme", anchors.open_anchor(location))
    assert s3.head_object(Bucket="anchor", Key=f"evidence/{placed.name}").get("ObjectLockMode") != "COMPLIANCE"


def test_a_bucket_without_object_lock_still_takes_each_name_once(signed: Log, s3) -> None:
    place = anchors.open_anchor(bucket(s3, lock=False))
    (placed,) = anchors.anchor(signed.database, "acme", place)
    assert placed.locked_until is None
    signed.tamper("delete from platform.checkpoint_anchor")
    assert [item.created for item in anchors.anchor(signed.database, "acme", place)] == [False]
    signed.tamper("delete from platform.checkpoint_anchor")
    s3.put_object(Bucket="anchor", Key=f"evidence/{placed.name}", Body=b"other")
    with pytest.raises(BareCountError, match="two histories were signed"):
        anchors.anchor(signed.database, "acme", place)


def test_a_bucket_that_is_not_there_is_said(signed: Log, s3) -> None:
    with pytest.raises(BareCountError) as caught:
        anchors.anchor(signed.database, "acme", anchors.open_anchor("s3://nowhere/evidence"))
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE


# --- The command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(signed: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs `barecount evidence` on the signed ledger; answers exit code and output."""
    monkeypatch.setenv("BARECOUNT_DATABASE_URL", signed.database.admin_url)
    monkeypatch.setenv("BARECOUNT_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        result = barecount("evidence", *arguments)
        return result.exit_code, result.output

    return run


def test_the_verbs_tell_one_story(cli: Callable[..., tuple[int, str]], signed: Log, tmp_path: Path) -> None:
    code, said = cli("checkpoint", "--tenant", "acme", "--out", "kept.checkpoint", "--anchor", "outside")
    assert code == 0 and "301 entries were signed before" in said
    assert Checkpoint.parse((tmp_path / "kept.checkpoint").read_bytes()).size == 301
    signed.append(20)
    code, said = cli("checkpoint", "--json", "--anchor", "outside")
    (document,) = json.loads(said)
    assert (code, document["size"], document["created"], len(document["anchored"])) == (0, 321, True, 1)
    code, said = cli("prove", "42", "--json", "--out", "entry.tlog-proof")
    assert code == 0 and json.loads(said)["holds"]
    assert verify_proof((tmp_path / "entry.tlog-proof").read_bytes(), [signed.key()]).ok
    assert cli("consistency", "kept.checkpoint", "321")[0] == 0
    code, said = cli("keys", "--json")
    assert (code, json.loads(said)[0]["key"]) == (0, signed.key().text)
    code, said = cli("search", "thing 31", "--kind", "test", "--json")
    assert code == 0 and {entry["subject"] for entry in json.loads(said)} == {
        "thing 31", *(f"thing {n}" for n in range(310, 320))}
    code, said = cli("verify", "--checkpoint", "kept.checkpoint", "--anchor", "outside", "--key", signed.key().text)
    assert code == 0 and "acme: 321 entries, intact" in said, said


def test_a_rewritten_history_is_found_by_the_command_even_without_an_anchor(
    cli: Callable[..., tuple[int, str]], signed: Log
) -> None:
    signed.rewrite(edit, forget=True)
    code, said = cli("verify")
    assert code == 1 and "rewritten" in said


def test_a_tenant_that_vanished_is_missed(cli: Callable[..., tuple[int, str]], signed: Log) -> None:
    cli("anchor", "--anchor", "outside")
    signed.tamper("delete from platform.evidence where tenant_id = 'acme'",
                  *(f"delete from platform.{table} where tenant_id = 'acme'"
                    for table in ("evidence_head", "checkpoint", "signing_key", "evidence_tile", "tenant")))
    code, said = cli("verify", "--anchor", "outside")
    assert code == 1 and "acme" in said and "truncated" in said


REFUSED = [
    (["prove", "999"], 1, "has no entry 999"),
    (["prove", "0"], 2, "greater than or equal to 1"),
    (["consistency", "301", "77"], 1, "no checkpoint of 77 entries; the newest are 301"),
    (["consistency", "301", "nowhere"], 2, "nowhere is not a checkpoint"),
    (["anchor"], 2, "no anchor"),
    (["verify", "--key", "nonsense"], 2, "not a public key"),
    (["verify", "--anchor", "nowhere"], 1, "no such folder"),
    (["export", "--from", "soon"], 2, "'soon' is not a date"),
    (["export", "--sections", "weather"], 2, "there are policy, signing_key, test"),
    (["export", "--to", "1999-01-01"], 1, "has no evidence"),
    (["rotate", "--tenant", "globex"], 1, "no signing key yet"),
    (["checkpoint", "--tenant", "nobody"], 1, "no tenant 'nobody'"),
]


def test_what_cannot_be_done_is_said(cli: Callable[..., tuple[int, str]]) -> None:
    for arguments, code, said in REFUSED:
        found, output = cli(*arguments)
        assert found == code, output
        assert said in " ".join(output.replace("\u2502", " ").split())


# --- Formats -------------------------------------------------------------------------------------------------------


def test_a_note_of_another_implementation_is_read() -> None:
    """The example of Go's golang.org/x/mod/sumdb/note."""
    key = Key.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    raw = ("If you think cryptography is the answer to your problem,\n"
           "then you don't know what your problem is.\n\n"
           "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6"
           "RyyBwJnAM=\n").encode()
    assert key.text == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert key.signed(Note.parse(raw))
    assert not key.signed(Note.parse(raw.replace(b"cryptography", b"Cryptography")))
