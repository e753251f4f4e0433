"""The development authority, and what is checked of a party's own certificate."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from radiopaque.certificates import (
    CertificateFiles,
    PeerIdentity,
    Role,
    authority,
    identity,
    init_directory,
    issue,
    load_identity,
    peer_identity,
    request,
)
from radiopaque.errors import AuthenticationError, ConfigError, RoleError, StoreError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki") / "certs"
    init_directory(directory, ["localhost", "127.0.0.1", "::1", "vendor.example"])
    return directory


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    copy = tmp_path / "certs"
    shutil.copytree(made, copy)
    return copy


def files(directory: Path, name: str) -> CertificateFiles:
    return CertificateFiles(
        directory / f"{name}.crt", directory / f"{name}.key", directory / "ca.crt"
    )


def load(directory: Path, role: Role = Role.DATA_OWNER, name: str | None = None) -> Any:
    one = files(directory, name or role)
    return load_identity(one.certificate, one.key, one.ca, role)


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())


def names(one: x509.Certificate, kind: Any) -> list[Any]:
    extension = one.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return list(extension.value.get_values_for_type(kind))


def test_directory_holds_four_pairs_with_private_keys_private(made: Path) -> None:
    expected = {"ca", "crypto-provider", "model-owner", "data-owner"}
    assert {path.name for path in made.iterdir()} == {
        f"{name}.{kind}" for name in expected for kind in ("crt", "key")
    }
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in made.glob("*.key")} == {0o600}
    assert [path.name for path in made.parent.iterdir()] == ["certs"]


@pytest.mark.parametrize("role", Role)
def test_every_role_loads_as_itself(made: Path, role: Role) -> None:
    identity = load(made, role)
    assert (identity.role, identity.name) == (role, role.value)
    assert identity.certificate == files(made, role).certificate.read_bytes()
    assert b"PRIVATE KEY" in identity.private_key
    assert "PRIVATE" not in repr(identity)
    assert timedelta(days=396) < identity.not_after - datetime.now(UTC) <= timedelta(days=397)


def test_authority(made: Path) -> None:
    authority = certificate(made, "ca")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    remaining = authority.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=3649) < remaining <= timedelta(days=3650)
    for role in Role:
        one = certificate(made, role)
        one.verify_directly_issued_by(authority)
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("role", [Role.CRYPTO_PROVIDER, Role.MODEL_OWNER])
def test_names_of_a_serving_role(made: Path, role: Role) -> None:
    one = certificate(made, role)
    assert names(one, x509.UniformResourceIdentifier) == [f"urn:radiopaque:role:{role}"]
    assert names(one, x509.DNSName) == [f"{role}.radiopaque", "localhost", "vendor.example"]
    assert [str(address) for address in names(one, x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    key = one.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_a_data_owners_certificate_is_good_for_no_server(made: Path) -> None:
    one = certificate(made, Role.DATA_OWNER)
    assert names(one, x509.DNSName) == names(one, x509.IPAddress) == []
    usage = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_nothing_is_overwritten_without_force(directory: Path) -> None:
    before = (directory / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="--force"):
        init_directory(directory)
    assert (directory / "ca.key").read_bytes() == before
    init_directory(directory, force=True)
    assert (directory / "ca.key").read_bytes() != before
    assert load(directory).name == "data-owner"
    assert [path.name for path in directory.parent.iterdir()] == ["certs"]


def test_force_does_not_remove_foreign_files(directory: Path) -> None:
    (directory / "thesis.tex").write_text("years of work")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        init_directory(directory, force=True)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_an_empty_folder_and_a_relative_one_are_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    init_directory(tmp_path / "empty")
    assert load(tmp_path / "empty").name == "data-owner"
    monkeypatch.chdir(tmp_path)
    init_directory(Path("new/deeper"))
    assert load(tmp_path / "new" / "deeper").name == "data-owner"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(authority, "write_atomically", full)
    with pytest.raises(StoreError):
        init_directory(tmp_path / "certs")
    assert list(tmp_path.iterdir()) == []


def test_bad_host(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="klinik-münchen"):
        init_directory(tmp_path / "certs", ["klinik-münchen.example"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host",
    [
        "not a host",
        "",
        "vendor.example:7302",
        "https://vendor.example",
        "192.168.1",
        "192.168.1.256",
        "vendor..example",
        "vendor.example.",
        "-vendor.example",
        "a.*.example",
        "vendor.example\n",
        "x" * 64,
    ],
)
@pytest.mark.parametrize("role", Role)
def test_what_is_no_host(tmp_path: Path, role: Role, host: str) -> None:
    with pytest.raises(ConfigError, match="neither an address nor an ASCII DNS name"):
        request(tmp_path, role, "someone", [host])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["vendor", "model_owner", "7.vendor.example", "*.example", "::1"])
def test_what_is_a_host(tmp_path: Path, host: str) -> None:
    request(tmp_path, Role.MODEL_OWNER, "someone", [host])


def test_issue_for_another_clinic(directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "clinic"
    output.mkdir()
    made = issue(directory, Role.DATA_OWNER, "clinic-b", output=output)
    assert made == files(output, "clinic-b")
    assert {path.name for path in output.iterdir()} == {"clinic-b.crt", "clinic-b.key", "ca.crt"}
    identity = load(output, name="clinic-b")
    assert (identity.role, identity.name) == (Role.DATA_OWNER, "clinic-b")
    stated = peer_identity(certificate(output, "clinic-b"))
    assert stated == PeerIdentity(Role.DATA_OWNER, "clinic-b")
    with pytest.raises(ConfigError, match="exists"):
        issue(directory, Role.DATA_OWNER, "clinic-b", output=output)


def test_issue_into_the_folder_of_another_authority(directory: Path, tmp_path: Path) -> None:
    init_directory(tmp_path / "other")
    with pytest.raises(ConfigError, match="another authority"):
        issue(directory, Role.DATA_OWNER, "clinic-b", output=tmp_path / "other")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "ca", "x" * 65, "a b", "a\n"])
def test_bad_names(directory: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        issue(directory, Role.DATA_OWNER, name)


def test_issue_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.key"):
        issue(tmp_path, Role.DATA_OWNER, "clinic")


@pytest.mark.parametrize("kind", ["certificate", "key", "ca"])
def test_missing_files(directory: Path, kind: str) -> None:
    path = getattr(files(directory, "data-owner"), kind)
    path.unlink()
    with pytest.raises(ConfigError, match=f"cannot read {path}"):
        load(directory)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_key_that_others_may_read(directory: Path, mode: int) -> None:
    path = directory / "data-owner.key"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load(directory)
    path.chmod(0o400)
    load(directory)


@pytest.mark.parametrize("kind", ["crt", "key"])
def test_broken_pem(directory: Path, kind: str) -> None:
    path = directory / f"data-owner.{kind}"
    path.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="PEM"):
        load(directory)


def test_empty_ca(directory: Path) -> None:
    (directory / "ca.crt").write_text("")
    with pytest.raises(ConfigError, match="PEM"):
        load(directory)


def test_key_of_another_certificate(directory: Path) -> None:
    shutil.copy(directory / "model-owner.key", directory / "data-owner.key")
    with pytest.raises(ConfigError, match="does not belong"):
        load(directory)


def test_wrong_role(directory: Path) -> None:
    with pytest.raises(RoleError, match="for the role data-owner, this party is the model-owner"):
        load(directory, Role.MODEL_OWNER, "data-owner")


def test_another_authority_of_the_same_name(directory: Path, tmp_path: Path) -> None:
    init_directory(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.crt", directory / "ca.crt")
    with pytest.raises(AuthenticationError, match="not issued by"):
        load(directory)


@pytest.mark.parametrize(
    ("days", "text"), [(398, "expired on 20"), (-1, "check the clock"), (3651, "expired on")]
)
def test_outside_the_period_of_validity(
    directory: Path, monkeypatch: pytest.MonkeyPatch, days: int, text: str
) -> None:
    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(identity, "datetime", Shifted)
    with pytest.raises(AuthenticationError, match=text):
        load(directory)


def odd_certificate(directory: Path, key: Any, uris: list[str], common_names: list[str]) -> None:
    """Overwrite the data owner's pair with one that the authority should not have signed."""
    ca_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(certificate(directory, "ca").subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if uris:
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    signed = builder.sign(ca_key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (directory / "data-owner.crt").write_bytes(signed.public_bytes(pem))
    (directory / "data-owner.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


DATA_OWNER_URI = "urn:radiopaque:role:data-owner"


def test_keys_that_are_not_on_p256(directory: Path) -> None:
    odd_certificate(directory, ec.generate_private_key(ec.SECP256R1()), [DATA_OWNER_URI], ["x"])
    load(directory)
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        odd_certificate(directory, key, [DATA_OWNER_URI], ["x"])
        with pytest.raises(ConfigError, match="P-256"):
            load(directory)


@pytest.mark.parametrize(
    ("uris", "common_names"),
    [
        ([], ["x"]),
        (["urn:radiopaque:role:admin"], ["x"]),
        (["urn:radiopaque:role:DATA-OWNER"], ["x"]),
        ([DATA_OWNER_URI, "urn:radiopaque:role:model-owner"], ["x"]),
        ([DATA_OWNER_URI, DATA_OWNER_URI], ["x"]),
        ([DATA_OWNER_URI], []),
        ([DATA_OWNER_URI], ["x", "y"]),
        (["https://example/data-owner"], ["x"]),
    ],
)
def test_statements_that_are_not_one_role_and_one_name(
    directory: Path, uris: list[str], common_names: list[str]
) -> None:
    odd_certificate(directory, ec.generate_private_key(ec.SECP256R1()), uris, common_names)
    with pytest.raises(AuthenticationError, match="role"):
        load(directory)
