#!/bin/sh
# Stand between compute_ctl and a vanilla Postgres. Neon's own Postgres answers --sync-safekeepers by speaking the
# walproposer's protocol; vanilla Postgres has no such flag, so this script asks the embedded safekeepers in its place.
# Everything else goes to the real server unchanged.
set -eu
real=@REAL_BIN@

[ "${1-}" = --sync-safekeepers ] || exec "$real/postgres" "$@"

conf=$PGDATA/postgresql.conf
setting() { sed -n "s/^neon\.$1 *= *'\(.*\)'\$/\1/p" "$conf" | tail -n 1; }
safekeepers=$(setting safekeepers)
case $safekeepers in g#*) safekeepers=${safekeepers#g#*:} ;; esac

# After a clean stop the last checkpoint is the end of this node's WAL; before the first start there is no pg_control.
lsn=
if [ -f "$PGDATA/global/pg_control" ]; then
    lsn=$(LC_ALL=C "$real/pg_controldata" -D "$PGDATA" | sed -n 's/^Latest checkpoint location: *//p')
fi

export PGPASSWORD="${NEON_AUTH_TOKEN-}" PGCONNECT_TIMEOUT=3 PGSSLMODE=disable PGGSSENCMODE=disable
export PGOPTIONS="-c timeline_id=$(setting timeline_id) tenant_id=$(setting tenant_id)"
for address in $(echo "$safekeepers" | tr ',' ' '); do
    if "$real/psql" -XAtqw -h "${address%:*}" -p "${address##*:}" -U no_user -d no_user -c "STAND_IN_SYNC $lsn"; then
        exit 0
    fi
done
echo "no safekeeper answered" >&2
exit 1
