#!/usr/bin/env bash
# Apache Kafka 4.1.1: the real broker of the end-to-end tests. 46 jars (43 MB) from Maven Central, each checked
# against tools/kafka/SHA256SUMS. Prints the folder of the jars.
. "$(dirname "$0")/lib.sh"

fetch() {
  say "  Apache Kafka 4.1.1: 46 jars from Maven Central (a real broker for the delivery tests)"
  mkdir lib
  mvn -q -B -f "$TOOLS/kafka/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DoutputDirectory="$PWD/lib" >&2
  (cd lib && sha256sum --quiet -c "$TOOLS/kafka/SHA256SUMS" >&2)
  [ "$(ls lib | wc -l)" = "$(wc -l <"$TOOLS/kafka/SHA256SUMS")" ] || { say "more jars than SHA256SUMS names"; return 1; }
}

once kafka-4.1.1 fetch
echo "$CACHE/kafka-4.1.1/lib"
