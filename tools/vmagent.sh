#!/usr/bin/env bash
# vmagent 1.140.0, the peer that `make bench` measures beside Strata. Built from its Go module, checked against
# tools/vmagent/go.sum. Prints the path of the program.
. "$(dirname "$0")/lib.sh"

build() {
  say "  vmagent 1.140.0: go build from its module (the peer of the benchmark; under a minute)"
  (cd "$TOOLS/vmagent" && GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w" -o "$OLDPWD/vmagent" \
    github.com/VictoriaMetrics/VictoriaMetrics/app/vmagent >&2)
}

once vmagent-1.140.0 build
echo "$CACHE/vmagent-1.140.0/vmagent"
