"""Without a network the answer comes within seconds, where the client alone tries for half a minute."""

import socket
import time

import pytest

from dajax import limits
from dajax.errors import HubError
from dajax.hub import locate, locate_first

NAME = "someone/something"
ADVICE = r"could not be had: the connection to .* failed.* local folder or file, set HF_HUB_OFFLINE=1 .* 'tiny'"


@pytest.fixture(autouse=True)
def _online(monkeypatch, hub):
    """Without proxies; and the client may open connections."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def no_name(*arguments, **options):
    raise socket.gaierror(-2, "Name or service not known")


def no_answer(*arguments, **options):
    time.sleep(5)
    raise TimeoutError("timed out")


@pytest.mark.parametrize("fault", [no_name, no_answer])
def test_the_answer_comes_soon_and_says_what_to_do(fault, monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "HUB_CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(socket, "create_connection", fault)
    started = time.monotonic()
    with pytest.raises(HubError, match=rf"^config\.json of {NAME} {ADVICE}"):
        locate(NAME, "config.json", cache_dir=tmp_path)
    assert time.monotonic() - started < 3


def test_the_bound_leaves_time_for_the_rest():
    assert limits.HUB_CONNECT_TIMEOUT < 8


def test_what_was_downloaded_before_is_used(filled, monkeypatch):
    path = locate(NAME, "config.json")
    monkeypatch.setattr(socket, "create_connection", no_name)
    filled.close()
    assert locate(NAME, "config.json") == path


def test_no_other_file_is_taken_instead(filled, monkeypatch):
    """model.safetensors may be there: that it is not in the cache says nothing."""
    locate(NAME, "config.json")
    monkeypatch.setattr(socket, "create_connection", no_name)
    with pytest.raises(HubError, match=rf"^model\.safetensors of {NAME} {ADVICE}"):
        locate_first(NAME, ["model.safetensors", "config.json"])


def test_behind_a_proxy_nothing_is_tried_beforehand(filled, monkeypatch):
    """Names need not resolve there: the proxy does that."""
    monkeypatch.setattr("dajax.hub._connects", lambda host, port: False)
    monkeypatch.setattr("dajax.hub.getproxies", lambda: {"http": "http://proxy.example:3128"})
    monkeypatch.setattr("dajax.hub.proxy_bypass", lambda host: False)
    assert locate(NAME, "config.json").name == "config.json"
