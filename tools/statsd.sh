#!/usr/bin/env bash
# Etsy's statsd 0.9.0: the foreign daemon of the statsd test. From npm by tools/statsd/package-lock.json (integrity
# hashes of every package), without package scripts. Prints the path of stats.js.
. "$(dirname "$0")/lib.sh"

fetch() {
  say "  statsd 0.9.0: npm packages by lock file, no package scripts (an independent daemon for the statsd test)"
  cp "$TOOLS/statsd/package.json" "$TOOLS/statsd/package-lock.json" .
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
}

once statsd-0.9.0 fetch
echo "$CACHE/statsd-0.9.0/node_modules/statsd/stats.js"
