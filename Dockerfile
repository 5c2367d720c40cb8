# The image of Strata: one binary, what it is linked to, certificates, one user who is not root. About 23 MB compressed, nats-server included.
#
#   docker buildx build --platform linux/amd64,linux/arm64 -t strata:0.1.0 .
#   docker run --read-only -v strata:/var/lib/strata -v "$PWD/strata.yaml:/etc/strata/strata.yaml:ro" strata:0.1.0
#
# Each platform builds on a machine, or an emulator, of its own kind. `tools/image.sh` makes the last stage from a binary that is there already.

ARG RUST_IMAGE=rust:1.95-bookworm
ARG GO_IMAGE=golang:1.26-bookworm

# nats-server is built from its module, pinned in bundled-nats/nats-server.
FROM ${GO_IMAGE} AS go

FROM ${RUST_IMAGE} AS build
COPY --from=go /usr/local/go /usr/local/go
ENV PATH=/usr/local/go/bin:/usr/local/cargo/bin:/usr/bin:/bin
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates cmake jq perl && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p strata && tools/image/root.sh target/release/strata /image \
 && tools/image/sbom.sh target/release/strata > /image/root/usr/share/doc/strata/strata.cdx.json

FROM scratch
ARG VERSION=0.1.0
COPY --from=build /image/root/ /
# Copied files are root's unless it is said.
COPY --from=build --chown=65532:65532 /image/state/ /var/lib/
LABEL org.opencontainers.image.title="strata" \
      org.opencontainers.image.description="A metrics appliance: scrape, keep in a bundled JetStream stream, relay anywhere, lose nothing." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/usr/local/bin STRATA_CONFIG=/etc/strata/strata.yaml SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
WORKDIR /var/lib/strata
EXPOSE 9600
ENTRYPOINT ["/usr/local/bin/strata"]
CMD ["run"]
