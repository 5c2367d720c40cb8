#!/usr/bin/env bash
# Programs that Debian 12 packages and the tests start: `tools/debian.sh prometheus|victoria-metrics|vmagent|etcd|haproxy|collectd|nats-server|node_exporter|libfaketime`.
# Unpacked, not installed: no service starts and the system stays as it is. Prints the folder, in which usr/ is; fails where
# apt does not have these versions, as do the tests that need them.
. "$(dirname "$0")/lib.sh"

# PACKAGE=VERSION SHA256 (amd64), each with the libraries that a plain system lacks
case ${1:-} in
  prometheus)
    folder=debian-prometheus-2.42.0
    packages="prometheus=2.42.0+ds-5+deb12u1 81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55"
    ;;
  victoria-metrics | vmagent) # two programs of one package
    folder=debian-$1-1.79.5
    packages="victoria-metrics=1.79.5+ds1-2+b5 bb437c10c5aa7c6a293acbb93828bd726dded618aa4bf3f4b45bef24c6d2f6f0"
    if [ "$1" = vmagent ]; then keep=usr/bin/vmagent; fi
    ;;
  etcd)
    folder=debian-etcd-3.4.23
    packages="etcd-server=3.4.23-4+b4 3a9445d4560ad6de1c375756b2a17d97713df44cbd20a658c871fe108af7ef5d"
    ;;
  haproxy)
    folder=debian-haproxy-2.6.12
    packages="haproxy=2.6.12-1+deb12u4 97ca097d12b43fc5cb1b17aa5e84957735ef312a2e02cf8a99512fa1abe8a955
liblua5.3-0=5.3.6-2 576ad8ef2e9f6ad21f29f0c90dac17448deefee8f3912877c2a0911b77e5d3ca
libopentracing-c-wrapper0=1.1.3-3+b1 68013bf6296a776923622c871bed26bc7b6bfe5f84b0fa2707a06382d1db2692
libopentracing1=1.6.0-4 af62b62a99979253a79e3443f7dabe13f1f33bc2fc024f99039e3868a67f26f4"
    ;;
  collectd)
    folder=debian-collectd-5.12.0
    packages="collectd-core=5.12.0-14 67671fba340445bcda9e3acbd18a9af8662418438b525c543389f8408052b148
libmicrohttpd12=0.9.75-6 bc48c3d32cfb9b188e3bdd080554143ec6253ea68dc2d7f239aa32d27a6aa792
libprotobuf-c1=1.4.1-1+b1 e99b3091938bfbd55b24e95587b868ba735e38e4adbcb9942c6993f2de3ba1bf"
    ;;
  nats-server) # an external server that is too old, for the test of the refusal
    folder=nats-server-2.9.10-1+b3
    packages="nats-server=2.9.10-1+b3 9f69ebb6f612e652382fde175622160dcd81fd97f2356f5da80bb5c3f48513dd"
    ;;
  node_exporter)
    folder=node_exporter-1.5.0-1+b6
    packages="prometheus-node-exporter=1.5.0-1+b6 8cb5b39627595ea2cf3cd27be593e0e9af87023d29e1c5b8487e2f9510097e09"
    ;;
  libfaketime) # shows one process another time of day
    folder=debian-libfaketime-0.9.10
    packages="libfaketime=0.9.10-2.1 b09481e7690680966005330c3f907bba4b5eefc35e1faaea4783cc55655d1150"
    ;;
  *) say "usage: tools/debian.sh prometheus|victoria-metrics|vmagent|etcd|haproxy|collectd|nats-server|node_exporter|libfaketime"; exit 2 ;;
esac

fetch() {
  local package sum
  while read -r package sum; do
    say "  $package: apt-get download, unpacked into the cache"
    apt-get download "$package" >/dev/null 2>&1 || { apt-get update -qq >/dev/null 2>&1 || true; apt-get download "$package" >/dev/null 2>&1; }
    echo "$sum  $(ls ./*.deb)" | sha256sum --quiet -c >&2
    dpkg -x ./*.deb .
    rm ./*.deb
  done <<<"$packages"
  # What nobody starts.
  rm -rf usr/share/doc usr/share/man usr/share/prometheus
  if [ -n "${keep:-}" ]; then find usr -type f ! -path "$keep" -delete; else rm -rf usr/bin/vm[abr]* usr/bin/vmctl; fi
}

have apt-get || { say "strata setup: $1 comes from Debian 12, and there is no apt-get here"; exit 1; }
once "$folder" fetch
echo "$CACHE/$folder"
