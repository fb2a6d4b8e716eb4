"""The collector of traces: one POST per batch, OTLP over HTTP (contract 10 §8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_compute import __version__
from trio_compute.errors import RemoteError
from trio_compute.storage.texts import brief
from trio_compute.trace_settings import TraceSettings

if TYPE_CHECKING:
    import httpx

# What the OTLP specification calls retryable.
_COME_BACK = frozenset({429, 502, 503, 504})


class CollectorAway(RemoteError):
    """Report a collector that may take the same batch later."""


async def send_traces(payload: bytes, settings: TraceSettings) -> None:
    """Hand an encoded batch over; raise CollectorAway, or RemoteError if it will never be taken."""
    # In a thread, since httpx is loaded here, and for https the certificates of all authorities.
    client = await trio.to_thread.run_sync(_client, settings)
    import httpx

    try:
        with trio.fail_after(settings.timeout_seconds):
            async with client:
                request = client.build_request("POST", settings.url, content=_packed(payload, settings))
                # The body of the answer is of no use, and a peer may send much of it.
                response = await client.send(request, stream=True)
                with trio.move_on_after(1, shield=True):
                    await response.aclose()
    except trio.TooSlowError:
        raise CollectorAway(f"no answer within {settings.timeout_seconds:g} s") from None
    except (httpx.InvalidURL, UnicodeError) as error:  # the latter from a host name that cannot be looked up
        raise RemoteError(f"the address of the collector is not usable: {brief(error)}") from None
    except httpx.HTTPError as error:
        raise CollectorAway(brief(error) or type(error).__name__) from None
    if response.status_code in _COME_BACK:
        raise CollectorAway(f"status {response.status_code}")
    if not response.is_success:
        raise RemoteError(f"status {response.status_code}")


def _client(settings: TraceSettings) -> httpx.AsyncClient:
    import httpx

    headers = {
        "user-agent": f"trio_compute/{__version__}",
        **dict(settings.headers),
        "content-type": "application/x-protobuf",
        **({"content-encoding": "gzip"} if settings.gzip else {}),
    }
    # trust_env: a proxy variable of the host must not see the headers.
    return httpx.AsyncClient(
        headers=headers,
        timeout=settings.timeout_seconds,
        trust_env=False,
        follow_redirects=False,
        verify=settings.url.startswith("https:"),
    )


def _packed(payload: bytes, settings: TraceSettings) -> bytes:
    if not settings.gzip:
        return payload
    import gzip

    return gzip.compress(payload)
