"""What docs/http-api.md says around its tables."""

# ruff: noqa: E501  (the rows of a table have no line breaks)

from __future__ import annotations

HEAD = """\
# The HTTP API of a compute

<!-- Written by `trio-compute schema --of api --markdown` from the table of operations; a test keeps it equal. -->

`GET /openapi.json` (in this directory: [openapi.json](openapi.json)) says the same to programs. Clients:
`trio-compute status`, `configure`, `terminate`; in Python `trio_compute.client`.

- The *external* server, port 3080, listens on all addresses and wants a token for all but a few routes. The
  *internal* one, port 3081, listens on loopback and wants none.
- HEAD works wherever GET does. An unknown path is 404, another method 405 with `allow`; both have an empty body.
- Every answer carries `x-request-id`: the one of the request if it is ASCII of at most 128 characters, else a new
  UUID.
- `traceparent` and `tracestate` (W3C) let a request go on with its caller's trace; invalid ones are ignored.
- An error is `{"error": "<text>"}`; where objects of the catalog are at fault, `failures` names them. No text holds a
  token or a password. A defect of the compute is `{"error": "internal error"}` with 500; its text is in the log
  alone.
- Unknown parameters, and unknown keys of a body, are ignored. `null` is no value of a parameter.
- What a request began goes on though its client leaves; whoever waits and leaves is forgotten.

## Tokens

`Authorization: Bearer <JSON Web Token>`, signed with a key of `compute_ctl_config.jwks`: EdDSA with an Ed25519 key,
RS256 with an RSA key. `exp`, if there, is checked with a minute's leeway.

| status | when |
|---|---|
| 400 | no `authorization`, another scheme, or what is no text |
| 401 | no key verifies it, it has expired, its claims have another shape, or it is an admin's and not for us |
| 403 | it names another compute, or none |

Good is a token whose `compute_id` is ours, or whose `scope` is `compute_ctl:admin` and whose `aud`, an array, holds
`compute`. In lakebase mode with `INSTANCE_ID` set, no token is wanted.

## Bodies

JSON in UTF-8 with content type `application/json` or `application/*+json`; a `charset` has no meaning. A body is read
as it is sent: nobody undoes a `content-encoding`, so a compressed one is 400. Of duplicate keys the last is taken. A
body that stops coming is 408 after 60 s. A request that has both `content-length` and `transfer-encoding`, or
anything else that others may read differently, is 400 and its connection ends; a head of more than 64 KiB is 431.
"""

SUBJECTS = """\
## Waiting for a status

`GET /status` answers at once. With `wait_for`, `since` or both it answers when the status is one of those named *and*
`revision`, which counts the changes of status, is greater than `since`; also when the compute has terminated, and
when `timeout` (at most 5 minutes) is over. It is always 200 with the present status, so look at what came back:

```sh
curl -H "Authorization: Bearer $TOKEN" 'http://localhost:3080/status?wait_for=running,failed&timeout=5m'
```

To miss no change, pass the `revision` of the last answer as `since`. The other keys beyond those of the original
(`history`, `phase`, `phase_since`, `restart_required`, `pending_restart`, `migration_error`,
`databases_failed`) are there when there is something to say. A database in `databases_failed` is not as the spec wants
it, for the reason told there; the compute runs all the same, and the next apply tries again.

## Events

`GET /events` is a stream of server-sent events (`curl -N`). Each has an `id`, a kind and a JSON object with its time
`at`:

| kind | data |
|---|---|
| `transition` | `from`, `to`, `event`, and `error` if there is one |
| `phase` | a measured step when it begins, and again with `duration_seconds` and `failed` when it is over |
| `activity` | `last_active`, and whether Postgres is `up` |
| `prewarm`, `offload` | the state as `/lfc/prewarm` and `/lfc/offload` tell it |
| `promotion` | the step of a promotion |
| `extension` | a downloaded `file` with `bytes`, or `error` |

There may be more kinds later. Without `after` the stream begins with the next event; `after=0` begins with the oldest
of the 512 that are kept; a browser resumes by `last-event-id`. A comment every 15 s shows that the connection lives.
The stream ends when the servers do.

## Probes

They need no token and tell nothing that is worth one.

| probe | 200 | 503 | in Kubernetes |
|---|---|---|---|
| `/livez` | the process answers, whatever became of the compute: the verdict on a failed one is still to be collected | never | `livenessProbe`: restart what hangs |
| `/readyz` | Postgres takes connections and nobody is ending it, also while a change is being applied | before, after, and if the start failed | `readinessProbe`: send sessions here |
| `/startupz` | the start is over, or there is no spec yet to start with | a start runs, or it failed | `startupProbe`: hold the other two back |

A change that fails, which a user of the database may cause, alters none of the three: what counts is that Postgres
runs. So it is with all routes that need SQL alone: `/check_writability`, `/insights`, `/dbs_and_roles`,
`/database_schema`, `/extensions`, `/grants`, `/lfc/prewarm`, `/lfc/offload`, `/terminate?if_idle=true`.

## Dumps, extensions, names that are no text

A dump waits at most 5 s for a connection, 10 s for a lock, and takes at most 5 minutes: 504 before its first text, an
answer that breaks off after. Four work at once; those that wait for a lock, or for their reader, do not count.

`/extensions` runs no script of an extension where a user of the database could have put something that the script
would find ([security.md](security.md)): 409 names what is in the way. 404 and 409 are for what whoever asks can mend,
5xx for what the compute must answer for.

Names that are not UTF-8 are left out of `/dbs_and_roles`, with one warning in the log. A dump of a database in which
something cannot be converted to UTF-8 comes as it is, as `text/plain` without a charset.

## Ending only what is idle

`POST /terminate?if_idle=true` ends the compute only if no session works, and knows it when it does: while it counts,
the postmaster stands still, so nobody can begin in between. 409 names the number of sessions; 503 means that it
cannot be known, because Postgres does not run or does not answer. In both cases nothing has changed. A compute
without a spec is idle.

## Doing something once

A `/configure` whose spec is in force already is answered at once, and one that wants what another request is waiting
for joins it. With `idempotency-key`, a repetition finds the result of the first request, a failure too, however long
ago (of the newest 64 keys); the same key with another spec is 422. `/terminate` joins an end that has begun, with 201
once it is over. A second `/promote` waits for the first. `/refresh_configuration` twice is once.
"""
