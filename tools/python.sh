#!/usr/bin/env bash
# A Python environment with the packages of sample/tests/requirements.txt and e2e/requirements.txt, every one pinned by hash: the
# independent decoder of the wire format, what tests check the chart and the image with, the client library that the comparison scrapes. Prints the path of
# its python.
. "$(dirname "$0")/lib.sh"

REQUIREMENTS=("$REPO/sample/tests/requirements.txt" "$REPO/e2e/requirements.txt")

build() {
  say "  Python environment with $(cat "${REQUIREMENTS[@]}" | grep -c '==') hash-pinned packages (the independent decoder, an exporter)"
  # A virtual environment knows its own path, so it is made where it will stay.
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --require-hashes "${REQUIREMENTS[@]/#/--requirement=}" >&2
  touch done
}

NAME=python-$(cat "${REQUIREMENTS[@]}" | sha256sum | cut -c1-12)
VENV=$CACHE/$NAME.venv
once "$NAME" build
echo "$VENV/bin/python3"
