"""Certificates from a hospital's own authority, asked with `radiopaque certs request`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509

from radiopaque.certificates import (
    Identity,
    PeerIdentity,
    Role,
    init_directory,
    issue,
    load_identity,
    peer_identity,
    request,
    revoke,
)
from radiopaque.cli.main import main
from radiopaque.errors import AuthenticationError, ConfigError
from radiopaque.files import open_locked
from tests.unit.certificates.hospital import Authority, root


@pytest.fixture(scope="module")
def above() -> Authority:
    return root()


@pytest.fixture(scope="module")
def issuing(above: Authority) -> Authority:
    return above.below("General Hospital Issuing 3")


class Party:
    """One party's files, and what is loaded from them."""

    def __init__(self, folder: Path, issuing: Authority, trusted: bytes) -> None:
        self.folder = folder
        made = request(folder, Role.DATA_OWNER, "ward-7")
        self.key = made.key
        self.pem = issuing.sign(made.request.read_bytes())
        self.certificate = folder / "ward-7.crt"
        self.certificate.write_bytes(self.pem)
        self.ca = folder / "bundle.pem"
        self.ca.write_bytes(trusted)
        self.crl = folder / "lists.pem"

    def load(self, crl: bytes | None = None, *, accept_stale_crl: bool = False) -> Identity:
        path = None
        if crl is not None:
            path = self.crl
            path.write_bytes(crl)
        return load_identity(
            self.certificate,
            self.key,
            self.ca,
            Role.DATA_OWNER,
            path,
            accept_stale_crl=accept_stale_crl,
        )


@pytest.fixture
def party(tmp_path: Path, above: Authority, issuing: Authority) -> Party:
    return Party(tmp_path, issuing, above.pem + b"# J\xc3\xb6rg's root\n" + issuing.pem)


@pytest.mark.parametrize("role", Role)
def test_a_request_says_what_an_issued_certificate_says(tmp_path: Path, role: Role) -> None:
    hosts = ["vendor.example", "::1"]
    made = request(tmp_path, role, "someone", hosts)
    asked = x509.load_pem_x509_csr(made.request.read_bytes())
    init_directory(tmp_path / "ca")
    (tmp_path / "issued").mkdir()
    issued = issue(tmp_path / "ca", role, "someone", hosts, tmp_path / "issued")
    certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    assert asked.is_signature_valid
    assert asked.subject == certificate.subject
    for extension in asked.extensions:
        same = certificate.extensions.get_extension_for_oid(extension.oid)
        assert (same.value, same.critical) == (extension.value, extension.critical)
    assert len(asked.extensions) == 4
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in made.request.read_bytes()


def test_a_request_overwrites_nothing(tmp_path: Path) -> None:
    made = request(tmp_path, Role.DATA_OWNER, "ward-7")
    before = made.key.read_bytes(), made.request.read_bytes()
    for path, left in ((made.request, made.key), (made.key, made.request)):
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(ConfigError, match=f"{left} exists"):
            request(tmp_path, Role.DATA_OWNER, "ward-7")
        path.write_bytes(kept)
    assert (made.key.read_bytes(), made.request.read_bytes()) == before
    with pytest.raises(ConfigError, match="name"):
        request(tmp_path, Role.DATA_OWNER, "../x")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["certs", "request", "data-owner", "ward-7", str(tmp_path / "asked")])
    assert not ended.value.code
    assert sorted(path.name for path in (tmp_path / "asked").iterdir()) == [
        "ward-7.csr",
        "ward-7.key",
    ]
    made = init_directory(tmp_path / "ca")[Role.DATA_OWNER]
    with pytest.raises(SystemExit) as ended:
        main(["certs", "revoke", str(tmp_path / "ca"), str(made.certificate)])
    assert not ended.value.code
    with pytest.raises(AuthenticationError, match="was revoked by"):
        load_identity(
            made.certificate, made.key, made.ca, Role.DATA_OWNER, tmp_path / "ca" / "ca.crl"
        )
    capsys.readouterr()


def test_a_certificate_of_the_hospitals_authority_loads(party: Party) -> None:
    identity = party.load()
    assert (identity.role, identity.name) == (Role.DATA_OWNER, "ward-7")
    identity.authorities.decode("ascii")
    assert identity.authorities.count(b"BEGIN CERTIFICATE") == 2


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize("name", ["ward\x1b[2J", "w" * 65])
def test_a_name_that_steers_a_terminal_or_is_too_long_is_no_name(
    party: Party, issuing: Authority, name: str
) -> None:
    common_name = x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name, _validate=False)
    odd = x509.Name([common_name])
    csr = x509.load_pem_x509_csr((party.folder / "ward-7.csr").read_bytes())
    certificate = (
        x509.CertificateBuilder(odd, odd, csr.public_key(), 1)
        .not_valid_before(issuing.certificate.not_valid_before_utc)
        .not_valid_after(issuing.certificate.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("urn:radiopaque:role:data-owner")]
            ),
            critical=False,
        )
        .sign(issuing.key, x509.base.hashes.SHA256())  # type: ignore[attr-defined]
    )
    with pytest.raises(AuthenticationError, match="control characters or has over 64"):
        peer_identity(certificate)


def test_what_a_certificate_lacks_that_states_no_role(issuing: Authority) -> None:
    with pytest.raises(AuthenticationError, match="states 0 role") as raised:
        peer_identity(issuing.certificate)
    assert str(raised.value).endswith(
        "urn:radiopaque:role: with one of crypto-provider, data-owner, model-owner behind it"
    )


# Revocation lists.


def test_good_lists(party: Party, above: Authority, issuing: Authority) -> None:
    identity = party.load(above.revoking() + issuing.revoking())
    assert identity.revoked is not None


def test_a_revoked_certificate(party: Party, above: Authority, issuing: Authority) -> None:
    with pytest.raises(AuthenticationError, match="was revoked by 'CN=General Hospital Issuing 3'"):
        party.load(above.revoking() + issuing.revoking([party.pem]))


def test_a_revoked_authority_in_between(party: Party, above: Authority, issuing: Authority) -> None:
    with pytest.raises(AuthenticationError, match="of 'CN=General Hospital Issuing 3' was revoked"):
        party.load(above.revoking([issuing.pem]) + issuing.revoking())


@pytest.mark.parametrize("missing", ["root's", "issuing one's"])
def test_a_missing_list(party: Party, above: Authority, issuing: Authority, missing: str) -> None:
    there = issuing if missing == "root's" else above
    with pytest.raises(AuthenticationError, match="there is no revocation list of"):
        party.load(there.revoking())


def test_a_list_that_has_ended(party: Party, above: Authority, issuing: Authority) -> None:
    stale = above.revoking() + issuing.revoking(days=-1)
    with pytest.raises(AuthenticationError, match=r"ended on 20.*fetch the new one"):
        party.load(stale)
    party.load(stale, accept_stale_crl=True)
    revoked = above.revoking() + issuing.revoking([party.pem], days=-1)
    with pytest.raises(AuthenticationError, match="was revoked"):
        party.load(revoked, accept_stale_crl=True)


def test_a_list_that_somebody_else_signed(party: Party, above: Authority) -> None:
    """A stranger of the same name, who would bring a revoked certificate back."""
    stranger = root().below("General Hospital Issuing 3")
    with pytest.raises(ConfigError, match="signed by none of the trusted authorities"):
        party.load(above.revoking() + stranger.revoking())


@pytest.mark.parametrize("newest", [0, 1])
def test_the_newest_list_of_an_authority_counts(
    party: Party, above: Authority, issuing: Authority, newest: int
) -> None:
    """Not the last in the file, and not one added to the other."""
    ages = [2, 1] if newest else [1, 2]
    lists = [issuing.revoking([party.pem], age=ages[0]), issuing.revoking(age=ages[1])]
    for order in (lists, lists[::-1]):
        if newest == 0:
            with pytest.raises(AuthenticationError, match="was revoked"):
                party.load(above.revoking() + b"".join(order))
        else:
            party.load(above.revoking() + b"".join(order))


def test_a_list_of_a_part(party: Party, above: Authority, issuing: Authority) -> None:
    with pytest.raises(ConfigError, match="only a part"):
        party.load(above.revoking() + issuing.revoking(delta=True))


@pytest.mark.parametrize("data", [b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----"])
def test_what_is_no_list(party: Party, data: bytes) -> None:
    with pytest.raises(ConfigError, match="no revocation list"):
        party.load(data)


def test_an_authority_outside_the_bundle_cannot_be_checked(
    party: Party, above: Authority, issuing: Authority
) -> None:
    """TLS would take a chain through an intermediate that the peer sends along."""
    party.ca.write_bytes(above.pem)
    with pytest.raises(AuthenticationError, match="which is not in `ca`"):
        party.load(above.revoking())


def test_an_intermediate_authority_alone_may_be_trusted(party: Party, issuing: Authority) -> None:
    party.ca.write_bytes(issuing.pem)
    party.load(issuing.revoking())
    with pytest.raises(AuthenticationError, match="was revoked"):
        party.load(issuing.revoking([party.pem]))


def test_lists_of_the_development_authority_grow(tmp_path: Path) -> None:
    made = init_directory(tmp_path / "ca")
    for role in (Role.DATA_OWNER, Role.MODEL_OWNER, Role.DATA_OWNER):
        path = revoke(tmp_path / "ca", made[role].certificate)
    assert len(list(x509.load_pem_x509_crl(path.read_bytes()))) == 2
    strange = init_directory(tmp_path / "other")[Role.DATA_OWNER]
    with pytest.raises(ConfigError, match="no certificate of the authority"):
        revoke(tmp_path / "ca", strange.certificate)


def test_one_revokes_at_a_time(tmp_path: Path) -> None:
    """Each list holds all that were revoked before; made side by side, one would lack the other."""
    made = init_directory(tmp_path / "ca")
    path = revoke(tmp_path / "ca", made[Role.DATA_OWNER].certificate)
    before = path.read_bytes()
    other = open_locked(tmp_path / "ca" / "ca.key")
    with pytest.raises(ConfigError, match="another process is at work with the authority"):
        revoke(tmp_path / "ca", made[Role.MODEL_OWNER].certificate)
    assert path.read_bytes() == before
    os.close(other)
    revoke(tmp_path / "ca", made[Role.MODEL_OWNER].certificate)
    assert len(list(x509.load_pem_x509_crl(path.read_bytes()))) == 2
    init_directory(tmp_path / "ca", force=True)
    assert not path.exists()


def test_roles_still_come_from_the_uri(party: Party) -> None:
    certificate = x509.load_pem_x509_certificate(party.pem)
    assert peer_identity(certificate) == PeerIdentity(Role.DATA_OWNER, "ward-7")
