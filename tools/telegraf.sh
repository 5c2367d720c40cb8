#!/usr/bin/env bash
# Telegraf 1.37.2 with the plugins that the test of a feed uses: a vendor's agent. Built from its Go module, checked against
# tools/telegraf/go.sum (some minutes, once). Prints the path of the program.
. "$(dirname "$0")/lib.sh"

TAGS=custom,inputs.nats_consumer,outputs.file,parsers.influx,parsers.json,parsers.json_v2,parsers.prometheus,serializers.influx,serializers.json

build() {
  say "  Telegraf 1.37.2: go build from its module with the plugins of the test (a vendor's agent; some minutes, once)"
  (cd "$TOOLS/telegraf" && go_build -tags="$TAGS" -ldflags "-s -w" -o "$OLDPWD/telegraf" github.com/influxdata/telegraf/cmd/telegraf)
}

once telegraf-1.37.2 build
echo "$CACHE/telegraf-1.37.2/telegraf"
