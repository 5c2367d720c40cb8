#!/usr/bin/env bash
# Strata with config/examples/quickstart.yaml: it scrapes itself and, where apt had it, node_exporter, and prints every
# sample that its relay delivers, until Ctrl-C. The stream is kept in ./data.
. "$(dirname "$0")/lib.sh"
cd "$REPO"

exporter=$("$TOOLS/node_exporter.sh")
if [ -n "$exporter" ] && ! (exec 3<>/dev/tcp/127.0.0.1/9100) 2>/dev/null; then
  "$exporter" --web.listen-address=127.0.0.1:9100 >/dev/null 2>&1 &
  exporter_pid=$!
  trap 'kill "$exporter_pid" 2>/dev/null || true' EXIT
  say "node_exporter runs on 127.0.0.1:9100 (pid $exporter_pid) and ends with this command"
fi
say "strata run -c config/examples/quickstart.yaml: samples follow as the relay delivers them; Ctrl-C ends it"
target/release/strata run -c config/examples/quickstart.yaml &
strata_pid=$!
# Ctrl-C reaches Strata by itself (a second signal would end it without draining); a TERM for this script is passed on.
trap : INT
trap 'kill -TERM "$strata_pid" 2>/dev/null || true' TERM
code=0
wait "$strata_pid" || code=$?
while kill -0 "$strata_pid" 2>/dev/null; do wait "$strata_pid" && code=0 || code=$?; done
exit "$code"
