"""What counts as a URL, and what of it may be shown."""

from typing import Any, TypeGuard
from urllib.parse import urlsplit

from dajax.errors import shown


def is_url(source: Any) -> TypeGuard[str]:
    """Whether this is text that begins like the URL of a web page or image."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def redacted(url: str) -> str:
    """Quote a URL for messages, without the parts that hold secrets: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that hold no IPv6 address
        return shown(url.partition("?")[0].rpartition("@")[2])
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return shown(place + "?…" * bool(parts.query))
