"""Who calls: static tokens, JSON Web Tokens, roles. What does not hold is refused, and nothing of it is shown."""

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from mmecg_server.admission import PrincipalLimits
from mmecg_server.auth import METHOD_ROLES, check_permission
from mmecg_server.config import AuthConfig, JwtConfig, LimitsConfig
from mmecg_server.json_web_tokens import JwtVerifier
from mmecg_server.principals import ANONYMOUS, ROLES, Principal, Principals, new_token
from mmecg_server.server import Server

from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.errors import ConfigError, InvalidInputError, OverloadedError, PermissionDeniedError, UnauthenticatedError
from mmecg.search import Scope

KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
ISSUER, AUDIENCE = "https://login.clinic", "mmecg"


def pem(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def claims(**changes) -> dict:
    now = time.time()
    values = {"sub": "ward-3", "iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "roles": ["reader"]} | changes
    return {name: value for name, value in values.items() if value is not None}


def signed(algorithm="ES256", key=None, headers=None, **changes) -> str:
    return jwt.encode(claims(**changes), key or KEYS[algorithm], algorithm, headers)


@pytest.fixture
def verifier(tmp_path):
    def make(algorithm="ES256", content=None, **changes) -> JwtVerifier:
        file = tmp_path / "key.pem"
        file.write_bytes(pem(KEYS[algorithm]) if content is None else content)
        settings = {"key": file, "algorithm": algorithm, "issuer": ISSUER, "audience": AUDIENCE, "leeway_s": 5.0}
        return JwtVerifier(JwtConfig(**(settings | changes)))

    return make


def test_a_static_token_is_its_principal():
    token, entry = new_token("ward-3", ["reader", "predictor"], sites=["north"])
    principal = Principals(entry.encode()).by_token(token)
    assert principal == Principal(
        name="ward-3", roles=frozenset(["reader", "predictor"]), scope=Scope(sites=frozenset(["north"]))
    )
    assert token not in entry
    assert hashlib.sha256(token.encode()).hexdigest() in entry


@pytest.mark.parametrize("change", [str.upper, lambda t: t[:-1], lambda t: t + "a", lambda t: t[:19] + "A" * 43])
def test_a_token_that_is_nearly_right_is_refused(change):
    token, entry = new_token("ward-3", ["reader"])
    with pytest.raises(UnauthenticatedError, match="not accepted") as caught:
        Principals(entry.encode()).by_token(change(token))
    assert token[-20:] not in str(caught.value)


def test_a_static_token_expires():
    token, entry = new_token("a", ["reader"], expires=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(UnauthenticatedError, match="expired"):
        Principals(entry.encode()).by_token(token)


TOKEN, ENTRY = new_token("ward-3", ["reader"])


@pytest.mark.parametrize(("content", "words"), [
    ("principal = 3", "no list of tables"),
    ("[[principal", "not TOML"),
    (ENTRY.replace('"reader"', '"king"'), "roles"),
    (ENTRY.replace('["reader"]', "[]"), "roles"),
    (ENTRY.replace('["reader"]', '"reader"'), "roles"),
    (ENTRY.replace("ward-3", " "), "name"),
    (ENTRY + ENTRY, "there twice"),
    (ENTRY + "expires = 2030-01-01", "expires"),
    (ENTRY + "expires = 2030-01-01T00:00:00", "a zone"),
    (ENTRY + 'site = "north"', "has site, expected"),
    (ENTRY + 'sites = "north"', "sites is not a list"),
    ('[[principal]]\nname = "a"\nroles = ["reader"]', "no way to show"),
    (ENTRY.replace("token_sha256", "certificate"), "no way to show"),
    ('[[principal]]\nname = "a"\nroles = ["reader"]\ncertificate = ""', "certificate"),
])  # fmt: skip
def test_a_file_of_principals_that_is_wrong(content, words):
    with pytest.raises(ConfigError, match=words):
        Principals(content.encode())


def test_new_token_refuses_what_is_no_role_or_name():
    for name, roles in (("a", []), ("a", ["king"]), ("", ["reader"])):
        with pytest.raises(InvalidInputError):
            new_token(name, roles)


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_signed_token_is_its_principal(verifier, algorithm):
    token = signed(algorithm, roles=["reader", "admin", "unheard-of"])
    principal = verifier(algorithm).verify(token)
    assert (principal.name, principal.roles) == ("ward-3", {"reader", "admin"})
    assert principal.scope.is_whole
    assert verifier(algorithm).verify(signed(algorithm, roles="ingester reader")).roles == {"ingester", "reader"}


def forged_with_public_key_as_secret() -> str:
    """HS256 over the PEM of the public key: what a library accepts that lets the token choose the algorithm."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims())
    )
    seal = hmac.new(pem(KEYS["ES256"]), head + b"." + body, hashlib.sha256).digest()
    return (head + b"." + body + b"." + base64.urlsafe_b64encode(seal).rstrip(b"=")).decode()


def mixed(one: str, other: str) -> str:
    """The claims of the other under the seal of the one."""
    head, _, seal = one.split(".")
    return ".".join([head, other.split(".")[1], seal])


BAD_TOKENS = {
    "none": lambda: jwt.encode(claims(), None, "none"),
    "public key as secret": forged_with_public_key_as_secret,
    "another algorithm": lambda: signed("RS256"),
    "another key": lambda: signed(key=ec.generate_private_key(ec.SECP256R1())),
    "changed claims": lambda: mixed(signed(), signed(sub="chief")),
    "another issuer": lambda: signed(iss="https://elsewhere"),
    "another audience": lambda: signed(aud="mail"),
    "no expiry": lambda: signed(exp=None),
    "no audience": lambda: signed(aud=None),
    "no name": lambda: signed(sub=None),
    "a name that cannot be one": lambda: signed(sub="a\nb"),
    "no token at all": lambda: "abc",
    "kid of a path": lambda: signed(headers={"kid": "../../etc/passwd"}),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BAD_TOKENS if not name.startswith("kid")])
def test_a_signed_token_that_does_not_hold(verifier, name):
    token = BAD_TOKENS[name]()
    with pytest.raises(UnauthenticatedError) as caught:
        verifier().verify(token)
    assert str(caught.value) == "the token is not accepted; check its issuer, audience and key, or get a new one"


def test_times_of_a_token_with_leeway(verifier):
    now = time.time()
    assert verifier().verify(signed(exp=now - 3)).expires_at > now
    assert verifier().verify(signed(nbf=now + 3))
    with pytest.raises(UnauthenticatedError, match="expired"):
        verifier().verify(signed(exp=now - 6))
    with pytest.raises(UnauthenticatedError, match="not valid yet"):
        verifier().verify(signed(nbf=now + 60))


def test_claims_of_sites_and_subjects(verifier):
    limited = verifier(sites_claim="wards", subjects_claim="people")
    scope = limited.verify(signed(wards=["north"], people="*")).scope
    assert scope == Scope(sites=frozenset(["north"]))
    assert limited.verify(signed(wards=[], people=["*"])).scope == Scope(sites=frozenset())
    for wards in (None, "north", 3, [3]):
        with pytest.raises(UnauthenticatedError, match="claim wards"):
            limited.verify(signed(wards=wards, people="*"))


def key_set(*keys) -> bytes:
    found = [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | more for key, more in keys]
    return json.dumps({"keys": found}).encode()


def test_a_key_set_is_asked_by_kid_and_read_again(tmp_path):
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    file = tmp_path / "keys.json"
    file.write_bytes(key_set((old, {"kid": "1"}), (KEYS["ES256"], {"kid": "2", "use": "enc"})))
    config = JwtConfig(jwks=file, algorithm="ES256", issuer=ISSUER, audience=AUDIENCE)
    verifier = JwtVerifier(config)
    assert verifier.verify(signed(key=old, headers={"kid": "1"})).name == "ward-3"
    assert verifier.verify(signed(key=old)).name == "ward-3"  # one key needs no name
    for kid in ("2", "../../etc/passwd"):
        with pytest.raises(UnauthenticatedError):
            verifier.verify(signed(key=old, headers={"kid": kid}))
    file.write_bytes(key_set((new, {"kid": "3"})))
    assert verifier.verify(signed(key=new, headers={"kid": "3"})).name == "ward-3"
    with pytest.raises(UnauthenticatedError):
        verifier.verify(signed(key=old, headers={"kid": "1"}))
    file.write_bytes(b"{")  # a mistake stops nothing
    assert verifier.verify(signed(key=new, headers={"kid": "3"})).name == "ward-3"


SECRET_KEYS = {
    "RSA for ES256": pem(KEYS["RS256"]),
    "private": KEYS["ES256"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
    "short RSA": pem(rsa.generate_private_key(65537, 1024)),
    "noise": b"abc",
    "another curve": pem(ec.generate_private_key(ec.SECP384R1())),
}


@pytest.mark.parametrize("name", SECRET_KEYS)
def test_keys_that_cannot_be_used(verifier, name):
    with pytest.raises(ConfigError, match="key"):
        verifier("RS256" if name == "short RSA" else "ES256", SECRET_KEYS[name])


@pytest.mark.parametrize("entry", [{"kty": "oct", "k": "AAAA", "kid": "1"}, {"kty": "EC", "crv": "P-256", "d": "x"}])
def test_a_key_set_with_secrets_is_refused(tmp_path, entry):
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(ConfigError, match="private or symmetric"):
        JwtVerifier(JwtConfig(jwks=tmp_path / "keys.json", algorithm="ES256", issuer=ISSUER, audience=AUDIENCE))


def test_every_method_has_its_roles(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool(database)
    served = {
        f"/{name}/{method.name}"
        for name in database.get_services()
        if name.startswith("mmecg.v1.")
        for method in pool.FindServiceByName(name).methods
    }
    assert served <= set(METHOD_ROLES)
    assert all(roles and set(roles) <= set(ROLES) for roles in METHOD_ROLES.values())
    # What only one role may do, said once more.
    only = {roles[0]: 0 for roles in METHOD_ROLES.values() if len(roles) == 1}
    assert set(only) == set(ROLES)


def test_a_method_that_is_not_listed_is_refused_to_everybody():
    with pytest.raises(PermissionDeniedError):
        check_permission(ANONYMOUS, "/mmecg.v1.CorpusService/DropEverything")


def test_the_whole_corpus_is_for_those_who_may_see_it():
    admin = Principal(name="a", roles=frozenset(["admin"]))
    check_permission(admin, "/mmecg.v1.AdminService/Backup")
    with pytest.raises(PermissionDeniedError, match="whole corpus"):
        check_permission(replace(admin, scope=Scope(sites=frozenset(["x"]))), "/mmecg.v1.AdminService/Backup")


def test_rate_of_a_principal():
    now = [0.0]
    limits = PrincipalLimits(LimitsConfig(rate_per_s=2, burst=3), lambda: now[0])

    def call(name="a"):
        with limits.enter(name):
            pass

    for _ in range(3):
        call()
    with pytest.raises(OverloadedError, match="2 calls a second") as caught:
        call()
    assert caught.value.retry_after_s == 0.5
    call("b")  # others have their own
    now[0] += 0.5
    call()
    with pytest.raises(OverloadedError):
        call()
    now[0] += 1000
    for _ in range(3):
        call()
    with pytest.raises(OverloadedError):
        call()


def test_calls_of_a_principal_at_the_same_time():
    limits = PrincipalLimits(LimitsConfig(max_in_flight_per_principal=2))
    with limits.enter("a"), limits.enter("a"):
        with pytest.raises(OverloadedError, match="2 calls of this caller"), limits.enter("a"):
            pass
        with limits.enter("b"):
            pass
    with limits.enter("a"):
        pass


def test_principals_are_forgotten(monkeypatch):
    monkeypatch.setattr("mmecg_server.admission._REMEMBERED", 10)
    limits = PrincipalLimits(LimitsConfig(rate_per_s=1))
    with limits.enter("kept"):
        for number in range(100):
            with limits.enter(str(number)):
                pass
        assert len(limits._shares) <= 100
    with limits.enter("x"):
        pass
    assert len(limits._shares) <= 11


class TestServer:
    """Tokens and roles over the wire."""

    @pytest.fixture
    def secured(self, config, retriever, tmp_path):
        """A server, and clients of it by name."""
        (tmp_path / "jwt.pem").write_bytes(pem(KEYS["ES256"]))
        file = tmp_path / "principals.toml"
        tokens, entries = {}, []
        for role in ROLES:
            tokens[role], entry = new_token(role, [role])
            entries.append(entry)
        expires = datetime.now(UTC) - timedelta(days=1)
        tokens["expired"], entry = new_token("expired", ["reader"], expires=expires)
        file.write_text("\n".join([*entries, entry]))
        issuer = JwtConfig(key=tmp_path / "jwt.pem", algorithm="ES256", issuer=ISSUER, audience=AUDIENCE)
        auth = AuthConfig(principals=file, jwt=issuer)
        tokens |= {"jwt": signed(), "wrong": tokens["reader"][:-2] + "xx", "none": None, "forged": BAD_TOKENS["none"]()}
        with Server(replace(config, auth=auth)) as server:
            server.serve(retriever)

            def client(name: str) -> Client:
                token = tokens.get(name, name)
                return Client(f"127.0.0.1:{server.port}", ChannelOptions(token=token, retry=RetryPolicy(attempts=1)))

            client.file, client.server = file, server
            yield client

    def test_roles(self, secured, make_study):
        with secured("ingester") as client:
            assert [one.error for one in client.upsert([make_study(1)])] == [None]
            with pytest.raises(PermissionDeniedError, match="the role reader"):
                client.get_study("study-1")
        for name in ("reader", "jwt"):
            with secured(name) as client:
                assert client.get_study("study-1").study_id == "study-1"
                with pytest.raises(PermissionDeniedError, match="ingester"):
                    client.delete_study("study-1")
                with pytest.raises(PermissionDeniedError):
                    list(client.upsert([make_study(2)]))
                with pytest.raises(PermissionDeniedError):
                    client.predict(make_study(1))
        with secured("predictor") as client:
            assert client.info().limits["max_batch"] == 16
            with pytest.raises(PermissionDeniedError):
                client.search(text="a")

    @pytest.mark.parametrize(
        ("name", "words"),
        [("none", "no token"), ("wrong", "not accepted"), ("expired", "expired"), ("forged", "not accepted"),
         ("x" * 9000, "."), ("", "one `Bearer`")],
    )  # fmt: skip
    def test_who_is_not_known(self, secured, name, words):
        with secured(name) as client, pytest.raises((UnauthenticatedError, OverloadedError), match=words):
            client.info()

    def test_denials_do_not_tell_what_is_there(self, secured, make_study):
        with secured("ingester") as client:
            list(client.upsert([make_study(1)]))
        for name in ("predictor", "none"):
            with secured(name) as client:
                told = []
                for study_id in ("study-1", "study-nowhere"):
                    with pytest.raises((PermissionDeniedError, UnauthenticatedError)) as caught:
                        client.get_study(study_id)
                    told.append(str(caught.value))
                assert told[0] == told[1]

    def test_a_token_is_taken_away_and_given(self, secured):
        with secured("reader") as client:
            client.info()
            kept = secured.file.read_text()
            secured.file.write_text("")
            with pytest.raises(UnauthenticatedError):
                client.info()
            secured.file.write_text(kept)
            client.info()

    def test_a_signed_token_takes_no_name_of_the_file(self, secured):
        with secured(signed(sub="ingester")) as client:
            with pytest.raises(UnauthenticatedError, match="that of another principal"):
                client.info()
            secured.file.write_text("")
            client.info()  # nobody else has the name now

    def test_a_broken_file_stops_nothing(self, secured, log_lines):
        with secured("reader") as client:
            secured.file.write_text("[[principal]]\nname = 3")
            client.info()
            client.info()
            secured.server.reload()
        failed = [json.loads(line) for line in log_lines if "reload_failed" in line]
        assert len(failed) == 2  # once for the change, once for the signal
        assert failed[0]["what"] == "auth.principals"

    def test_nothing_of_a_token_is_logged(self, secured, log_lines):
        shown = []
        for name in ("reader", "wrong", "expired", "jwt", "forged"):
            with secured(name) as client:
                token = client._options.token
                shown += [part for part in (token, token.rpartition("_")[2], *token.split(".")) if len(part) > 8]
                assert token not in repr(client._options)
                if name in ("reader", "jwt"):
                    client.info()
                else:
                    with pytest.raises(UnauthenticatedError) as caught:
                        client.info()
                    shown_to_caller = str(caught.value)
                    assert not any(part in shown_to_caller for part in shown)
        assert len(log_lines) >= 5
        assert [line for line in log_lines if any(part in line for part in shown)] == []

    def test_limits_of_a_caller_are_published_and_kept(self, config, retriever):
        limits = replace(config.limits, rate_per_s=0.5, burst=2)
        with Server(replace(config, limits=limits)) as server:
            server.serve(retriever)
            options = ChannelOptions(retry=RetryPolicy(attempts=1))
            with Client(f"127.0.0.1:{server.port}", options) as client:
                found = client.info().limits
                assert (found["rate_per_s"], found["burst"], found["max_page_size"]) == (0.5, 2, 1000)
                client.info()
                with pytest.raises(OverloadedError, match="calls a second") as caught:
                    client.info()
                assert 0 < caught.value.retry_after_s <= 2


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("10.0.0.1:5", False), ("clinic:5", False), ("127.0.0.1:5", True), ("[::1]:5", True), ("localhost:5", True),
     ("unix:/run/x", True), ("dns:///clinic:5", False), ("127.evil.example:5", False)],
)  # fmt: skip
def test_no_token_in_plain_text_to_another_machine(address, allowed):
    options = ChannelOptions(token="secret-token")
    if allowed:
        Client(address, options).close()
    else:
        with pytest.raises(ConfigError, match="plain text"):
            Client(address, options)
        Client(address, replace(options, allow_plaintext_token=True)).close()
