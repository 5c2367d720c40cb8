#!/usr/bin/env bash
# statsd_exporter 0.31.0, a receiver of the statsd tests (UDP, TCP, Unix datagrams, DogStatsD tags). Built from its Go module, checked against
# tools/statsd_exporter/go.sum. Prints the path of the program.
. "$(dirname "$0")/lib.sh"

build() {
  say "  statsd_exporter 0.31.0: go build from its module (a receiver of the statsd tests; under a minute)"
  (cd "$TOOLS/statsd_exporter" && go_build -ldflags "-s -w" -o "$OLDPWD/statsd_exporter" github.com/prometheus/statsd_exporter)
}

once statsd_exporter-0.31.0 build
echo "$CACHE/statsd_exporter-0.31.0/statsd_exporter"
