#!/usr/bin/env bash
# The image from a binary that is built already, without a registry and without a daemon: `tools/image.sh [BINARY] [--archive FILE]`.
#
# Builds the last stage of Dockerfile with buildah, prints what it weighs compressed, and runs it as a cluster would: as a user who is not root, on a root that
# cannot be written, with no network but loopback. `strata check`, then `strata run` until it is ready. Needs root and apt's buildah.
#
#   --archive FILE   also writes the image as an OCI archive, for `docker load` or a registry
#   --sbom FILE      also writes the image's list of what is in it, CycloneDX
. "$(dirname "$0")/lib.sh"

binary=$REPO/target/release/strata
archive=
sbom=
while [ $# -gt 0 ]; do
  case $1 in
    --archive) archive=$2; shift ;;
    --sbom) sbom=$2; shift ;;
    -*) say "usage: tools/image.sh [BINARY] [--archive FILE] [--sbom FILE]"; exit 2 ;;
    *) binary=$1 ;;
  esac
  shift
done
[ -x "$binary" ] || { say "$binary is absent: run \`cargo build --release\` first"; exit 1; }
have buildah || { say "buildah is absent: apt-get install --no-install-recommends buildah"; exit 1; }
[ "$(id -u)" = 0 ] || { say "needs root: an image's files have owners, and its run has a root of its own"; exit 1; }

work=$(mktemp -d)
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }
strata=
finish() {
  if [ -n "$strata" ]; then kill -KILL "$strata" 2>/dev/null || true; fi
  mountpoint -q "$work/root" && umount -R "$work/root"
  rm -rf "$work"
}
trap finish EXIT

version=$("$binary" -V | cut -d' ' -f2)
mkdir "$work/context"
"$TOOLS/image/root.sh" "$binary" "$work/context"
"$TOOLS/image/sbom.sh" "$binary" >"$work/context/root/usr/share/doc/strata/strata.cdx.json"
# The same last stage, from the folder beside it instead of the stage before it.
sed -n '/^FROM scratch$/,$p' "$REPO/Dockerfile" | sed 's|^COPY --from=build \(.*\)/image/|COPY \1|' >"$work/context/Dockerfile"
if grep -q -e --from= "$work/context/Dockerfile"; then say "Dockerfile: the last stage copies more than /image"; exit 1; fi
buildah bud --quiet --timestamp 0 --build-arg "VERSION=$version" -t "strata:$version" "$work/context" >/dev/null

buildah push --quiet --compression-format gzip --compression-level 9 "strata:$version" "oci:$work/oci:strata:$version"
manifest=$(jq -r '.manifests[0].digest' "$work/oci/index.json" | tr : /)
bytes=$(jq '[.layers[].size] | add' "$work/oci/blobs/$manifest")
config=$(jq -r '.config.digest' "$work/oci/blobs/$manifest" | tr : /)
user=$(jq -r '.config.User' "$work/oci/blobs/$config")
[ "$user" = 65532:65532 ] || { say "the image runs as '$user'"; exit 1; }
echo "compressed: $bytes bytes"
if [ -n "$archive" ]; then tar -C "$work/oci" -cf "$archive" .; fi

# What a cluster mounts: the configuration, and a volume of the user's own.
mkdir "$work/config" "$work/data" "$work/root"
cat >"$work/config/strata.yaml" <<'YAML'
scrape_configs:
  - {job_name: strata, scrape_interval: 1s, static_configs: [{targets: ["127.0.0.1:9600"]}]}
relays:
  - {name: out, sink: {file: {path: /var/lib/strata/samples.ndjson}}}
buffer: {max_bytes: 256MiB}
server: {listen: "127.0.0.1:9600"}
YAML
chown -R 65532:65532 "$work/data"
container=$(buildah from --quiet "strata:$version")

# What the image says: its user, its entrypoint, its environment.
buildah run --network none -v "$work/config:/etc/strata:ro" "$container" -- strata check
echo "version: $(buildah run --network none "$container" -- strata -V)"
cat >"$work/start.sh" <<'RUN'
set -euo pipefail
image=$1 work=$2
root=$work/root
ip link set lo up
mount --bind "$image" "$root"
for folder in dev proc; do mkdir -p "$image/$folder"; done
mount --bind "$work/config" "$root/etc/strata"
mount --bind "$work/data" "$root/var/lib/strata"
mount -t proc -o ro,nosuid,nodev,noexec proc "$root/proc"
for device in null zero random urandom; do : >"$image/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mount -o remount,bind,ro "$root/etc/strata"
mount -o remount,bind,ro "$root"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv --no-new-privs chroot --userspec=65532:65532 --groups=65532 "$root" \
  /usr/local/bin/strata run --config /etc/strata/strata.yaml --set buffer.data_dir=/var/lib/strata
RUN
image=$(buildah mount "$container")
if [ -n "$sbom" ]; then cp "$image/usr/share/doc/strata/strata.cdx.json" "$sbom"; fi
unshare --net --mount --propagation private bash "$work/start.sh" "$image" "$work" 2>"$work/log" &
strata=$!
# Its own loopback is the only network it has: asked from inside it.
ready() { nsenter --target "$strata" --net bash -c 'exec 3<>/dev/tcp/127.0.0.1/9600 && printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && head -1 <&3' 2>/dev/null | grep -q ' 200 '; }
deadline=$((SECONDS + 60))
until ready && [ -s "$work/data/samples.ndjson" ]; do
  if ! kill -0 "$strata" 2>/dev/null || [ $SECONDS -ge $deadline ]; then say "strata is not ready, or delivers nothing:"; tail -20 "$work/log" >&2; exit 1; fi
  sleep 0.2
done
status() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$strata/status"; }
root_options=$(awk '$5 == "/" { print $6 }' "/proc/$strata/mountinfo" | tail -1)
echo "ready: user $(status Uid | cut -f1), group $(status Gid | cut -f1), capabilities $(status CapEff), root ${root_options%%,*}, new privileges $(status NoNewPrivs | sed 's/1/never/')"
# The server itself, which the image's binary unpacked.
echo "server: $("$work"/data/nats/bin/nats-server-* --version)"
kill -TERM "$strata"
wait "$strata" || { say "strata did not end well:"; tail -20 "$work/log" >&2; exit 1; }
strata=
echo "stopped: $(wc -l <"$work/data/samples.ndjson") samples delivered"
