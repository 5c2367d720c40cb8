#!/usr/bin/env bash
# The image's file system: `tools/image/root.sh BINARY FOLDER` makes FOLDER/root, which is root's, and FOLDER/state, which is the one user's. The binary without its symbols, the dynamic loader and the libraries that `ldd`
# names, the system's CA certificates, and the one user. No shell, no package manager, nothing else.
set -euo pipefail

binary=$1
root=$2/root
state=$2/state
mkdir -p "$state/strata"
for folder in usr/local/bin etc/ssl/certs etc/strata var/lib usr/share/doc/strata; do mkdir -p "$root/$folder"; done

strip -s -o "$root/usr/local/bin/strata" "$binary"
# `NAME => PATH (address)` for libraries, `PATH (address)` for the loader; they go where the loader looks for them.
ldd "$binary" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'strata:x:65532:65532::/var/lib/strata:/' > "$root/etc/passwd"
echo 'strata:x:65532:' > "$root/etc/group"
# The C library resolves names by it; what it needs for that is part of libc itself.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
chmod -R a+rX,go-w "$root"
chmod 700 "$state/strata"
