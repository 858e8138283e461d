"""Configuration is strict."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from mmecg_server.config import AuthConfig, LimitsConfig, ServerConfig, TlsConfig

from mmecg.config import effective_config, load_config, parse_config
from mmecg.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_file_overrides_and_defaults(tmp_path):
    file = write(tmp_path / "s.toml", 'port = 1234\ncorpus = "data/c"\ndrain_s = 3\n[limits]\nmax_batch = 8\n')
    config = load_config(ServerConfig, file, port=99, host=None)
    assert (config.port, config.host, config.drain_s, config.limits.max_batch) == (99, "127.0.0.1", 3.0, 8)
    assert config.corpus == tmp_path / "data/c"
    assert config.limits.max_streams == LimitsConfig().max_streams
    with pytest.raises(FrozenInstanceError):
        config.port = 1


@pytest.mark.parametrize(("text", "words"), [
    ("prot = 1", "did you mean port?"),
    ("[limits]\nmax_bach = 1", "did you mean limits.max_batch?"),
    ("zzz = 1", "expected one of"),
    ('port = "1"', "has type str, expected int"),
    ("port = true", "has type bool, expected int"),
    ("reflection = 1", "has type int, expected bool"),
    ("corpus = 3", "expected str"),
    ("limits = 3", "is not a table"),
    ("drain_s = nan", "expected a finite number"),
    ("port = 70000", "expected 0 to 65535"),
    ("[limits]\nmax_in_flight = 0", "expected more than 0"),
    ("[limits]\nmax_message_bytes = 10", "limits.max_message_bytes"),
    ("[limits]\nmax_queue = 8", "limits.max_queue is 8, expected at least limits.max_batch"),
    ('[tls]\ncertificate = "c.pem"', "go together"),
    ('[tls]\nclient_ca = "c.pem"', "needs tls.certificate"),
    ('host = "0.0.0.0"', "there is no TLS"),
    ('host = "0.0.0.0"\nallow_plaintext = true', "nobody has to show who they are"),
    ('host = "::"\n[tls]\ncertificate = "c.pem"\nkey = "k.pem"', "nobody has to show who they are"),
    ('host = "0.0.0.0"\nallow_plaintext = true\n[auth]\nprincipals = "p.toml"', "in plain text"),
    ('[auth.jwt]\nkey = "k.pem"', "auth.jwt.issuer is not set"),
    ('[auth.jwt]\nalgorithm = "none"', "expected one of 'RS256'"),
    ('[auth.jwt]\nalgorithm = "HS256"', "expected one of 'RS256'"),
    ('[auth.jwt]\nkey = "k.pem"\njwks = "j.json"', "expected one of them"),
    ("[limits]\nrate_per_s = -1", "expected 0 or more"),
    ("[limits]\nstream_idle_s = 0", "expected more than 0"),
    ("port = ", "is not TOML"),
])  # fmt: skip
def test_refusals(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        load_config(ServerConfig, write(tmp_path / "s.toml", text))


def test_a_missing_file_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(ServerConfig, tmp_path / "no.toml")


def test_public_address_with_tls_or_on_purpose():
    pair = {"certificate": Path("c.pem"), "key": Path("k.pem")}
    both_sides = TlsConfig(**pair, client_ca=Path("a.pem"))
    auth = AuthConfig(principals=Path("p.toml"))
    assert ServerConfig(host="0.0.0.0", tls=both_sides).host == "0.0.0.0"
    assert ServerConfig(host="0.0.0.0", tls=TlsConfig(**pair), auth=auth).host == "0.0.0.0"
    behind_a_proxy = {"host": "0.0.0.0", "allow_plaintext": True}
    assert parse_config(ServerConfig, behind_a_proxy | {"allow_anonymous": True}).allow_anonymous
    ServerConfig(**behind_a_proxy, auth=replace(auth, allow_plaintext_tokens=True))


def test_effective_configuration_is_plain():
    plain = effective_config(ServerConfig(corpus=Path("c")))
    assert plain["corpus"] == "c"
    assert plain["limits"]["max_batch"] == 64
    assert plain["tls"] == {"certificate": None, "key": None, "client_ca": None}


def test_storage_is_checked():
    config = parse_config(ServerConfig, {"storage": {"synchronous": "normal", "reserve_bytes": 0}})
    assert (config.storage.synchronous, config.storage.reserve_bytes) == ("normal", 0)
    with pytest.raises(ConfigError, match=r"storage.reserve_bytes is -1, expected 0 or more"):
        parse_config(ServerConfig, {"storage": {"reserve_bytes": -1}})
    with pytest.raises(ConfigError, match=r"storage.synchronous"):
        parse_config(ServerConfig, {"storage": {"synchronous": "off"}})
