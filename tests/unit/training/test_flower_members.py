"""Keys, the list of members, the agreed run and a site's own file: made, read, refused."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("flwr")

from tests.unit.training.hospitals import NAMES, Hospitals, build
from training.errors import SettingsError
from training.flower import command
from training.flower.keys import (
    load_identity,
    load_node,
    make_coordinator_keys,
    make_site_keys,
    tls_files,
)
from training.flower.members import assemble, load_members, split_address, to_toml
from training.flower.settings import (
    agreement,
    differences,
    load_run,
    load_site,
    settings_of,
    threshold_of,
)


@pytest.fixture
def hospitals(tmp_path: Path) -> Hospitals:
    return build(tmp_path, 9443)


# -- keys -------------------------------------------------------------------------------------


def test_private_keys_are_for_their_owner_alone_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    assert command.main(["keys", "--site", "elm", "--output", str(keys)]) == 0
    printed = capsys.readouterr().out
    assert "elm.public.toml" in printed
    for name in ("identity.pem", "node.pem"):
        assert stat.S_IMODE((keys / name).stat().st_mode) == 0o600
        secret = (keys / name).read_text().splitlines()[1]
        assert secret not in printed + (keys / "elm.public.toml").read_text()
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    identity = load_identity(keys).public_key().public_bytes_raw().hex()
    assert identity in (keys / "elm.public.toml").read_text()


def test_keys_are_not_replaced(tmp_path: Path) -> None:
    make_site_keys(tmp_path / "site", "elm")
    before = (tmp_path / "site" / "identity.pem").read_bytes()
    with pytest.raises(SettingsError, match="not replaced"):
        make_site_keys(tmp_path / "site", "elm")
    assert (tmp_path / "site" / "identity.pem").read_bytes() == before
    make_coordinator_keys(tmp_path / "coordinator", "a.example:1")
    with pytest.raises(SettingsError, match="not replaced"):
        make_coordinator_keys(tmp_path / "coordinator", "a.example:1")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_not_used(mode: int, tmp_path: Path) -> None:
    make_site_keys(tmp_path, "elm")
    (tmp_path / "node.pem").chmod(mode)
    with pytest.raises(SettingsError, match=r"read by others.*chmod 600"):
        load_node(tmp_path)


def test_damaged_missing_and_swapped_keys_are_explained(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no key"):
        load_identity(tmp_path)
    make_site_keys(tmp_path, "elm")
    identity, node = (tmp_path / "identity.pem"), (tmp_path / "node.pem")
    content = identity.read_bytes()
    identity.write_bytes(node.read_bytes())
    with pytest.raises(SettingsError, match="another kind"):
        load_identity(tmp_path)
    node.write_bytes(content)
    with pytest.raises(SettingsError, match="another kind"):
        load_node(tmp_path)
    identity.write_bytes(content[:60])
    with pytest.raises(SettingsError, match="can be read; restore"):
        load_identity(tmp_path)


def test_the_certificate_must_be_the_pinned_one(hospitals: Hospitals, tmp_path: Path) -> None:
    pinned = hospitals.members.coordinator.certificate
    assert len(tls_files(hospitals.coordinator_keys, pinned)) == 2
    make_coordinator_keys(tmp_path / "other", "127.0.0.1:9443")
    with pytest.raises(SettingsError, match="the list of members"):
        tls_files(tmp_path / "other", pinned)
    (hospitals.coordinator_keys / "tls.pem").write_bytes((tmp_path / "other/tls.pem").read_bytes())
    with pytest.raises(SettingsError, match="the list of members"):
        tls_files(hospitals.coordinator_keys, pinned)


# -- the list of members ----------------------------------------------------------------------


def test_the_list_is_read_as_it_was_written(hospitals: Hospitals) -> None:
    again = load_members(hospitals.members_file)
    assert again == hospitals.members
    assert again.fingerprint() == hospitals.members.fingerprint()
    assert len(again.fingerprint().split()) == 10
    assert sorted(again.pins()) == sorted(again.node_keys()) == list(NAMES)


def test_every_key_is_in_the_fingerprint(hospitals: Hospitals) -> None:
    text = hospitals.members_file.read_text()
    seen = {hospitals.members.digest()}
    for entry in hospitals.members.sites.values():
        for key in (entry.identity, entry.node):
            old = key[10:12] if key == entry.identity else None
            if old is not None:
                changed = text.replace(key, key[:10] + ("00" if old != "00" else "11") + key[12:])
                hospitals.members_file.write_text(changed)
                seen.add(load_members(hospitals.members_file).digest())
    hospitals.members_file.write_text(text.replace('name = "trees"', 'name = "shrubs"'))
    seen.add(load_members(hospitals.members_file).digest())
    hospitals.members_file.write_text(text.replace("127.0.0.1:9443", "127.0.0.1:9444"))
    seen.add(load_members(hospitals.members_file).digest())
    assert len(seen) == 1 + 3 + 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("version = 1", "version = 2", "version"),
        ('name = "trees"', 'name = "../trees"', "name"),
        ('name = "trees"', 'name = "trees"\ncolour = 1', "colour"),
        ("127.0.0.1:9443", "127.0.0.1", "write host:port"),
        ("127.0.0.1:9443", 'a\\" b:9443', "write host:port"),
        ("BEGIN CERTIFICATE", "BEGIN NOTHING", "certificate"),
        ("[sites.elm]", "[sites.Elm]", "sites.Elm"),
        ("identity = ", "identity = 5 #", "identity"),
        ('identity = "', 'identity = "zz', "identity"),
        ('node = "', 'node = "!', "DER in base64"),
        ('node = "M', 'node = "N', "node"),
    ],
)
def test_lists_that_are_not_are_refused(
    old: str, new: str, reason: str, hospitals: Hospitals
) -> None:
    text = hospitals.members_file.read_text()
    assert old in text
    hospitals.members_file.write_text(text.replace(old, new, 1))
    with pytest.raises(SettingsError, match=reason):
        load_members(hospitals.members_file)


def test_two_sites_do_not_share_a_key(hospitals: Hospitals) -> None:
    elm, oak = hospitals.members.sites["elm"], hospitals.members.sites["oak"]
    text = hospitals.members_file.read_text()
    for kind, key, other in (
        ("identity", elm.identity, oak.identity),
        ("node", elm.node, oak.node),
    ):
        hospitals.members_file.write_text(text.replace(key, other))
        with pytest.raises(SettingsError, match=f"same {kind} key"):
            load_members(hospitals.members_file)


def test_the_list_needs_everybody_once(hospitals: Hospitals, tmp_path: Path) -> None:
    public = [hospitals.root / name / "keys" / f"{name}.public.toml" for name in NAMES]
    coordinator = hospitals.coordinator_keys / "coordinator.public.toml"
    assert assemble("trees", [*public, coordinator]) == hospitals.members
    for files, reason in (
        (public, "0 coordinators"),
        ([*public, coordinator, coordinator], "2 coordinators"),
        ([coordinator, *public[:2]], "needs 3"),
        ([coordinator, *public, public[0]], "in the list already"),
        ([coordinator, *public, hospitals.members_file], "not what a member sends"),
        ([coordinator, *public, tmp_path / "none"], "no file"),
    ):
        with pytest.raises(SettingsError, match=reason):
            assemble("trees", files)


def test_the_commands_make_and_show_the_list(
    hospitals: Hospitals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = [hospitals.root / name / "keys" / f"{name}.public.toml" for name in NAMES]
    words = [
        str(path) for path in (*public, hospitals.coordinator_keys / "coordinator.public.toml")
    ]
    output = tmp_path / "list.toml"
    assert command.main(["list", "trees", *words, "--output", str(output)]) == 0
    capsys.readouterr()
    assert command.main(["show", str(output), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"sites": list(NAMES), "fingerprint": hospitals.members.fingerprint()}
    assert command.main(["list", "trees", *words, "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_text() == to_toml(hospitals.members)


@pytest.mark.parametrize("address", ["", "host", ":1", "host:0", "host:65536", "a b:1", "::1:5"])
def test_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        split_address(address)
    assert split_address("fed.example.org:9443") == ("fed.example.org", 9443)
    assert split_address("[::1]:9443") == ("::1", 9443)


# -- the run, and a site's own file -----------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('mode = "federated"', 'mode = "local"', "no effect|federated"),
        ("threshold = 2", "threshold = 3\nsites = 4", "federation.sites = 3"),
        ("threshold = 2", 'threshold = 2\nsplit = "class"', "federation.split"),
        ("threshold = 2", "threshold = 2\nsecure_aggregation = false", "secure_aggregation"),
        ("[model]", "validation_fraction = 0.2\n[model]", "validation_fraction"),
        (
            "[federation]",
            "[privacy]\nnoise_multiplier = 1.0\nsample_rate = 0.1\nepsilon = 8.0\n"
            'budget_folder = "b"\n[federation]',
            "file of each site",
        ),
    ],
)
def test_a_run_says_nothing_that_has_no_effect_across_machines(
    old: str, new: str, reason: str, hospitals: Hospitals
) -> None:
    text = hospitals.run.read_text()
    assert old in text
    hospitals.run.write_text(text.replace(old, new))
    with pytest.raises(SettingsError, match=reason):
        load_run(hospitals.run, hospitals.members)


def test_the_agreement_holds_what_decides_and_not_what_is_local(hospitals: Hospitals) -> None:
    members = hospitals.members

    def agreed() -> bytes:
        return agreement(members, load_run(hospitals.run, members))

    first, text = agreed(), hospitals.run.read_text()
    hospitals.run.write_text(text.replace("threads = 1", "threads = 2") + "# another comment\n")
    assert agreed() == first
    hospitals.run.write_text(text.replace("learning_rate = 0.05", "learning_rate = 0.5"))
    assert differences(first, agreed()) == [
        "run.training.learning_rate: here 0.05, coordinator 0.5"
    ]
    assert threshold_of(load_run(hospitals.run, members)) == 2


@pytest.mark.parametrize(
    "theirs",
    [b"", b"\xff", b"{", b"[" * 60_000, b'{"run":{"\x1b[2J\n":1}}', b'{"a":' * 5000 + b"}" * 5000],
)
def test_what_differs_is_told_without_trusting_it(theirs: bytes) -> None:
    lines = differences(b'{"run":{"seed":1}}', theirs)
    assert 1 <= len(lines) <= 20
    assert all(line.isprintable() and line.isascii() and len(line) < 400 for line in lines)


def test_a_site_adds_its_own_privacy_to_the_run(hospitals: Hospitals) -> None:
    hospitals.write_run(options=', normalisation = "standardised"')
    hospitals.write_privacy("oak", noise=2.5, epsilon=3.0)
    site = load_site(hospitals.site("oak"))
    run = load_run(site.run, hospitals.members)
    settings = settings_of(site, run)
    assert settings.privacy is not None
    assert (settings.privacy.noise_multiplier, settings.privacy.epsilon) == (2.5, 3.0)
    assert settings.privacy.budget_folder == hospitals.root / "oak" / "budgets"
    assert settings.training.local_steps == run.training.local_steps
    assert agreement(hospitals.members, settings) == agreement(hospitals.members, run)


def test_a_run_that_private_training_cannot_follow_is_refused(hospitals: Hospitals) -> None:
    hospitals.write_run(training="batch_size = 8")
    hospitals.write_privacy("oak")
    site = load_site(hospitals.site("oak"))
    run = load_run(site.run, hospitals.members)
    with pytest.raises(SettingsError, match=r"batch_size: no effect.*another run file"):
        settings_of(site, run)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("colour = 1", "colour"),
        ("threads = 0", "threads|overwrite"),
        ('name = "x"', "overwrite"),
        ('proxy = "ftp://a"', "proxy"),
        (
            "[privacy]\nnoise_multiplier = 0.0\nsample_rate = 0.1\nepsilon = 1\nbudget_folder='b'",
            "noise",
        ),
        (
            "[privacy]\nnoise_multiplier = 1.0\nsample_rate = 0.1\nepsilon = 1\nbudget_folder='b'\n"
            "[privacy.sites.elm]\nepsilon = 9.0",
            "privacy.sites",
        ),
    ],
)
def test_site_files_that_are_wrong_are_explained(
    change: str, reason: str, hospitals: Hospitals
) -> None:
    path = hospitals.site("elm")
    path.write_text(path.read_text() + change)
    with pytest.raises(SettingsError, match=reason):
        load_site(path)
    with pytest.raises(SettingsError, match="no file"):
        load_site(path.with_name("none.toml"))


def test_node_keys_are_those_of_the_files(hospitals: Hospitals) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = load_node(hospitals.root / "yew" / "keys").public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hospitals.members.node_keys()["yew"] == der
    assert base64.b64decode(hospitals.members.sites["yew"].node) == der


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["coordinate", "--help"], ["join", "--help"]):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0
    assert "opens no port" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_name_and_a_wrong_address_make_no_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--site", "Sankt Anna"], ["--site", "a/b"], ["--coordinator", "nowhere"]):
        arguments: list[Any] = ["keys", *words, "--output", str(tmp_path / "keys"), "--json"]
        assert command.main(arguments) == 2
        assert json.loads(capsys.readouterr().out)["error"] == "SettingsError"
    assert not (tmp_path / "keys").exists()
