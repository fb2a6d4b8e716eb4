"""Where the configuration comes from: a file, the command line, or the control plane (contract 01 §1.4, §5, §8)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import msgspec
import trio

from trio_compute.errors import RemoteError, SpecError
from trio_compute.model.decode import decode
from trio_compute.model.spec import ComputeConfig, ComputeCtlConfig, ComputeSpec, ControlPlaneAnswer, Jwks
from trio_compute.plan.schedules import CONTROL_PLANE_ATTEMPTS, CONTROL_PLANE_PAUSE_SECONDS
from trio_compute.settings import Settings
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import CONTROL_PLANE_REQUESTS, metrics

REQUEST_TIMEOUT_SECONDS = 30.0
MAX_BODY_BYTES = 64 * 1024 * 1024

log = get_logger("config")


async def obtain_config(settings: Settings) -> ComputeConfig:
    """Return the configuration from wherever the settings say; raise SpecError, or RemoteError after the retries."""
    if settings.config_path is not None:
        return located_configuration(str(settings.config_path), _read(settings.config_path))
    if settings.spec_path is not None:
        return located_configuration(str(settings.spec_path), _read(settings.spec_path), bare=True)
    if settings.spec_json is not None:
        return located_configuration("--spec", settings.spec_json.encode(), bare=True)
    assert settings.control_plane_uri is not None
    return await fetch_config(settings.control_plane_uri, settings.compute_id, settings.control_plane_token)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from error


def located_configuration(source: str, data: bytes, *, bare: bool = False) -> ComputeConfig:
    """Return a configuration, with `bare` a spec without one too; raise SpecError that names the source."""
    try:
        if bare and "compute_ctl_config" not in decode(data, dict[str, msgspec.Raw]):
            return ComputeConfig(
                spec=decode(data, ComputeSpec), compute_ctl_config=ComputeCtlConfig(jwks=Jwks(keys=[]))
            )
        return decode(data, ComputeConfig)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None


async def fetch_config(base: str, compute_id: str, token: str | None) -> ComputeConfig:
    """Ask the control plane for the configuration, up to three times; raise RemoteError (contract 01 §8)."""
    # A lakebase id looks like `uuid/0`: its slash separates path segments and stays.
    url = f"{base.rstrip('/')}/compute/api/v2/computes/{quote(compute_id, safe='/')}/spec"
    for attempt in range(1, CONTROL_PLANE_ATTEMPTS + 1):
        try:
            return await _fetch_once(url, token)
        except _Transient as error:
            log.warning("control plane did not answer usably", attempt=attempt, error=error)
        await trio.sleep(CONTROL_PLANE_PAUSE_SECONDS)
    raise RemoteError("Exhausted all attempts to retrieve the config from the control plane")


class _Transient(RemoteError):
    """Report an answer worth asking again for."""


async def _fetch_once(url: str, token: str | None) -> ComputeConfig:
    import httpx

    headers = {"authorization": f"Bearer {token}"} if token else {}
    body = bytearray()
    try:
        with trio.fail_after(REQUEST_TIMEOUT_SECONDS) as patience:
            # trust_env: a proxy variable of the host must not see the token.
            async with (
                httpx.AsyncClient(timeout=REQUEST_TIMEOUT_SECONDS, trust_env=False) as client,
                client.stream("GET", url, headers=headers) as response,
            ):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        # Whoever leaves this loop leaves httpx's generators open; a cancellation unwinds them.
                        patience.cancel()
    except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError) as error:
        _refuse_too_large(body)
        metrics.increment(CONTROL_PLANE_REQUESTS, rpc="GetConfig", http_status="unknown")
        raise _Transient(brief(error) or type(error).__name__) from None
    _refuse_too_large(body)
    status = f"{response.status_code} {httpx.codes.get_reason_phrase(response.status_code)}".rstrip()
    metrics.increment(CONTROL_PLANE_REQUESTS, rpc="GetConfig", http_status=status)
    if response.status_code in {502, 503}:
        raise _Transient(f"status {response.status_code}")
    if response.status_code != 200:
        raise RemoteError(f"unexpected control plane response status code: {status}")
    return _config_of(bytes(body))


def _refuse_too_large(body: bytearray) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise RemoteError(f"control plane answer is larger than {MAX_BODY_BYTES} bytes")


def _config_of(body: bytes) -> ComputeConfig:
    try:
        answer = decode(body, ControlPlaneAnswer)
    except SpecError as error:
        raise _Transient(f"unusable answer: {brief(error)}") from None
    if answer.status == "attached" and answer.spec is None:
        raise RemoteError("compute is attached, but spec is empty")
    return ComputeConfig(spec=answer.spec, compute_ctl_config=answer.compute_ctl_config)
