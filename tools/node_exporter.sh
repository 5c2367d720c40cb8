#!/usr/bin/env bash
# node_exporter as Debian 12 packages it: something real to scrape in `make run`. Prints the path of the program, or nothing (and
# succeeds) where apt does not have it.
. "$(dirname "$0")/lib.sh"

have apt-get || exit 0
folder=$("$TOOLS/debian.sh" node_exporter) || { say "  node_exporter: apt does not have it here; going on without"; exit 0; }
echo "$folder/usr/bin/prometheus-node-exporter"
