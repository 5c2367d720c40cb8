#!/usr/bin/env bash
# Prometheus 3.15, the receiver of remote write 2.0 and the other sender of the remote-write tests. Built from its Go module; of its
# discovery it has files, fixed lists and Kubernetes, whose targets are compared. Checked against tools/prometheus3/go.sum (some minutes on two cores,
# once). Prints the path of the program.
. "$(dirname "$0")/lib.sh"

TAGS=netgo,grpcnotrace,remove_all_sd,enable_kubernetes_sd

build() {
  say "  Prometheus 3.15: go build from its module (receiver and peer of the remote-write tests; some minutes, once)"
  (cd "$TOOLS/prometheus3" && go_build -tags="$TAGS" -ldflags "-s -w" -o "$OLDPWD/prometheus" github.com/prometheus/prometheus/cmd/prometheus)
}

once prometheus-3.15.0-kubernetes build
echo "$CACHE/prometheus-3.15.0-kubernetes/prometheus"
