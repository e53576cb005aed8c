#!/bin/sh
# First process of the PostgreSQL image: makes the database once, gives up root, becomes the server.
set -eu
PGDATA=${PGDATA:-/data/pgdata}
programs=$(echo /usr/lib/postgresql/*/bin)
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /var/run/postgresql
  chown -R postgres:postgres "$PGDATA" /var/run/postgresql
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  "$programs/initdb" --pgdata "$PGDATA" --auth-local=trust --auth-host=trust --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
fi
exec "$programs/postgres" -D "$PGDATA" -c listen_addresses='*'
