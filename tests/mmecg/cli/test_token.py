"""``mmecg token``: the secret is shown once, and the entry accepts it."""

import time
import tomllib

import pytest
from mmecg_server.principals import Principals

from mmecg.cli import main
from mmecg.errors import UnauthenticatedError


def test_entry_and_token_fit(capsys):
    assert main(["token", "new", "ward 3 ä", "--role", "reader", "--site", "north", "--subject", "p-1"]) == 0
    shown = capsys.readouterr()
    token = shown.err.strip()
    assert token not in shown.out
    assert token.rpartition("_")[2] not in shown.out
    principal = Principals(shown.out.encode()).by_token(token)
    assert (principal.name, principal.roles) == ("ward 3 ä", {"reader"})
    assert (principal.scope.sites, principal.scope.subject_ids) == ({"north"}, {"p-1"})
    assert 364 < (principal.expires_at - time.time()) / 86400 < 366


def test_entries_are_added_to_a_file_that_others_cannot_read(tmp_path, capsys):
    file = tmp_path / "principals.toml"
    tokens = []
    for name in ("a", "b"):
        assert main(["token", "new", name, "--role", "ingester", "--role", "reader", "--out", str(file)]) == 0
        tokens.append(capsys.readouterr().out.strip())
    principals = Principals(file.read_bytes())
    assert [principals.by_token(token).name for token in tokens] == ["a", "b"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(tomllib.loads(file.read_text())["principal"]) == 2


def test_days_are_days(capsys):
    assert main(["token", "new", "a", "--role", "reader", "--days", "0.00000001"]) == 0
    shown = capsys.readouterr()
    time.sleep(1.1)  # an entry says whole seconds
    with pytest.raises(UnauthenticatedError, match="expired"):
        Principals(shown.out.encode()).by_token(shown.err.strip())


@pytest.mark.parametrize(
    "arguments", [["--role", "king"], [], ["--role", "reader", "--days", "0"], ["--role", "reader", "--days", "9999"]]
)
def test_refusals(arguments, capsys):
    assert main(["token", "new", "a", *arguments]) == 2
    assert "mmecg" in capsys.readouterr().err


def test_a_name_that_cannot_be_one(capsys):
    assert main(["token", "new", "a\nb", "--role", "reader"]) == 2
    assert "name" in capsys.readouterr().err
