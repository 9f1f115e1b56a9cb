"""Tokens, private and gated repositories: what is sent to whom, and what a refusal says."""

import pytest
from loopback_hub import MEMBER, STRANGER, Fault

from dajax.errors import HubError
from dajax.hub import locate, locate_first

NAME = "someone/something"
FILES = ("config.json", "model.safetensors")


@pytest.fixture
def filled(hub, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    hub.push(NAME, folder)
    return hub


def sent(hub, host):
    """What was sent as Authorization to one host."""
    return {request.headers.get("authorization") for request in hub.asked(host=host)}


@pytest.mark.parametrize("private", [False, True])
def test_a_token_goes_to_the_hub_and_to_no_other_host(filled, private):
    if private:
        filled.private.add(NAME)
    for name in FILES:
        assert locate(NAME, name, token=MEMBER).read_text() == name
    assert sent(filled, "hub") == {f"Bearer {MEMBER}"}
    assert sent(filled, "cdn") == {None}


def test_a_resumed_download_keeps_the_token_from_the_other_host(filled):
    filled.faults.append(Fault("model.safetensors", cut_at=5))
    assert locate(NAME, "model.safetensors", token=MEMBER).read_text() == "model.safetensors"
    assert len(filled.asked(host="cdn")) == 2
    assert sent(filled, "cdn") == {None}


def test_a_stored_token_is_sent_unless_it_is_refused(filled, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    for token, expected in [(None, f"Bearer {MEMBER}"), (True, f"Bearer {MEMBER}"), (False, None)]:
        filled.requests.clear()
        locate(NAME, "config.json", token=token)
        assert sent(filled, "hub") == {expected}


def test_no_token_is_stored(filled):
    locate(NAME, "config.json")
    assert sent(filled, "hub") == {None}
    with pytest.raises(HubError, match="token=True, but no token is stored"):
        locate(NAME, "config.json", token=True)


@pytest.mark.parametrize("token", [MEMBER, None])
def test_no_such_repository(filled, token):
    with pytest.raises(
        HubError, match=r"no repository 'no/body' on the Hub \(or it is private: pass token=…\), and no "
    ):
        locate("no/body", "config.json", token=token)


@pytest.mark.parametrize("token", [STRANGER, None])
def test_private(filled, token):
    filled.private.add(NAME)
    with pytest.raises(HubError, match=r"no repository 'someone/something' on the Hub \(or it is private: pass token="):
        locate(NAME, "config.json", token=token)


@pytest.mark.parametrize(("token", "account"), [(STRANGER, "the token's account"), (None, "an account")])
def test_gated(filled, token, account):
    filled.gated.add(NAME)
    page = rf"{filled.url}/{NAME}"
    with pytest.raises(HubError, match=rf"is gated: accept its terms at {page} with {account} and .* token=…"):
        locate(NAME, "config.json", token=token)
    assert locate(NAME, "config.json", token=MEMBER).read_text() == "config.json"


@pytest.mark.parametrize("gated", [False, True])
def test_a_token_that_does_not_exist(filled, gated):
    if gated:
        filled.gated.add(NAME)
    with pytest.raises(HubError, match=r"the Hub refuses the token: it is mistyped, expired or revoked") as caught:
        locate(NAME, "config.json", token="hf_mistyped")
    assert "hf_mistyped" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_secret\n", " hf_secret", "hf secret", "hf_sécret", ""])
def test_a_malformed_token_is_not_shown(filled, token):
    with pytest.raises(HubError, match="token is empty, or has a space, a newline or another character") as caught:
        locate(NAME, "config.json", token=token)
    assert "cret" not in str(caught.value)
    assert not filled.requests


@pytest.mark.parametrize("make", ["gated", "private"])
def test_no_access_does_not_lead_to_the_next_file(filled, make):
    getattr(filled, make).add(NAME)
    with pytest.raises(HubError, match=r"^config\.json of"):
        locate_first(NAME, FILES)
    assert len(filled.asked()) == 1


def test_what_is_cached_is_used_when_the_token_is_not_good_any_more(filled):
    path = locate(NAME, "config.json", token=MEMBER)
    filled.private.add(NAME)
    assert locate(NAME, "config.json", token="hf_expired") == path
