#!/usr/bin/env bash
# A Python environment with the packages of sample/tests/requirements.txt, every one pinned by hash: the independent
# decoder of the wire format. Prints the path of its python.
. "$(dirname "$0")/lib.sh"

REQUIREMENTS=$REPO/sample/tests/requirements.txt

build() {
  say "  Python environment with $(grep -c '==' "$REQUIREMENTS") hash-pinned packages (the independent decoder of the wire format)"
  # A virtual environment knows its own path, so it is made where it will stay.
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$REQUIREMENTS" >&2
  touch done
}

[ -f "$REQUIREMENTS" ] || { command -v python3; exit 0; }
NAME=python-$(sha256sum "$REQUIREMENTS" | cut -c1-12)
VENV=$CACHE/$NAME.venv
once "$NAME" build
echo "$VENV/bin/python3"
