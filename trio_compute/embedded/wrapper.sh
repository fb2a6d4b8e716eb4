#!/bin/sh
# Stand between compute_ctl and a vanilla Postgres. Neon's own Postgres answers --sync-safekeepers by speaking the
# walproposer's protocol; vanilla Postgres has no such flag, so this script asks the embedded safekeepers in its place.
# Everything else goes to the real server; only the WAL is put beside the data directory, which the next start empties
# although the WAL may hold commits that nobody else has (own_wal.py).
set -eu
real=@REAL_BIN@

if [ "${1-}" = -D ] && [ -d "$2.wal" ] && [ -d "$2/pg_wal" ] && [ ! -L "$2/pg_wal" ]; then
    rm -rf "$2.wal/pg_wal" "$2.wal/taken"
    mv "$2/pg_wal" "$2.wal/pg_wal"
    ln -s "$2.wal/pg_wal" "$2/pg_wal"
fi
[ "${1-}" = --sync-safekeepers ] || exec "$real/postgres" "$@"

# No sed for these: each process would cost as much as the question itself. Blanks around the equals sign and quotes
# around the value are as the spec's author or compute_ctl wrote them.
safekeepers='' tenant='' timeline=''
while IFS=' 	=' read -r name value; do
    case $value in
    \'*) value=${value#\'} value=${value%%\'*} ;;
    *) value=${value%%[ 	#]*} ;;
    esac
    case $name in
    neon.safekeepers) safekeepers=$value ;;
    neon.tenant_id) tenant=$value ;;
    neon.timeline_id) timeline=$value ;;
    esac
done <"$PGDATA/postgresql.conf"
case $safekeepers in g#*) safekeepers=${safekeepers#g#*:} ;; esac

# After a clean stop the last checkpoint is the end of this node's WAL; before the first start there is no pg_control.
lsn=''
if [ -f "$PGDATA/global/pg_control" ]; then
    lsn=$(LC_ALL=C "$real/pg_controldata" -D "$PGDATA")
    lsn=${lsn#*Latest checkpoint location:} lsn=${lsn%%Latest*}
    lsn=${lsn#"${lsn%%[0-9A-F]*}"} lsn=${lsn%%[!0-9A-F/]*}
fi

export PGPASSWORD="${NEON_AUTH_TOKEN-}" PGCONNECT_TIMEOUT=3 PGSSLMODE=disable PGGSSENCMODE=disable
export PGOPTIONS="-c timeline_id=$timeline tenant_id=$tenant"
IFS=,
for address in $safekeepers; do
    address=${address#*://}
    address=${address##*@}
    if "$real/psql" -XAtqw -h "${address%:*}" -p "${address##*:}" -U no_user -d no_user -c "STAND_IN_SYNC $lsn"; then
        exit 0
    fi
done
echo "no safekeeper answered" >&2
exit 1
