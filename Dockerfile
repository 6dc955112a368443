# syntax=docker/dockerfile:1
# The two services, one target each:
#   docker build --target msg-gateway -t msg-gateway .
#   docker build --target msg-transfer -t msg-transfer .

# The Rust version of rust-toolchain.toml. The file itself is not copied: it would install rustfmt and clippy as well.
FROM rust:1.95-slim-bookworm AS build
# make builds librdkafka and OpenSSL from their sources. librdkafka's configure script needs a C++ compiler, and OpenSSL's
# needs Perl with all of its modules.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make perl \
    && rm -rf /var/lib/apt/lists/*
# zlib is linked statically, because the final image has none. Symbols are needed only where the binaries are built.
ENV LIBZ_SYS_STATIC=1 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols
WORKDIR /build

# Build the dependencies with empty packages: Docker reuses this layer until a manifest or Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
COPY msg-gateway/Cargo.toml msg-gateway/
COPY msg-transfer/Cargo.toml msg-transfer/
COPY msg-transfer/machine/Cargo.toml msg-transfer/machine/
COPY msg-dev/Cargo.toml msg-dev/
COPY msg-dev/fetch/Cargo.toml msg-dev/fetch/
COPY msg-dev/stack/Cargo.toml msg-dev/stack/
COPY tests/Cargo.toml tests/
COPY tests/bench/Cargo.toml tests/bench/
COPY tests/identities/Cargo.toml tests/identities/
COPY tests/lab/Cargo.toml tests/lab/
COPY tests/simulator/Cargo.toml tests/simulator/
RUN printf '//! Empty.\nfn main() {}\n' >build.rs \
    && for package in . msg-gateway msg-transfer msg-transfer/machine msg-dev msg-dev/fetch msg-dev/stack \
           tests tests/bench tests/identities tests/lab tests/simulator; do \
           mkdir -p "$package/src" && echo '//! Empty.' >"$package/src/lib.rs" && cp build.rs "$package/src/main.rs" || exit 1; \
       done \
    && rm src/main.rs \
    && cargo build --release --locked -p msg-gateway -p msg-transfer

# Build the sources. cargo compares file times, and a copied file may be older than its empty placeholder: touch all.
COPY build.rs ./
COPY proto proto
COPY src src
COPY msg-gateway msg-gateway
COPY msg-transfer msg-transfer
RUN find build.rs proto src msg-gateway msg-transfer -exec touch {} + \
    && cargo build --release --locked -p msg-gateway -p msg-transfer

# libc, libgcc and certificates; no shell, no package manager, only the user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
USER 65532:65532
STOPSIGNAL SIGTERM
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.licenses=Apache-2.0

FROM runtime AS msg-gateway
LABEL org.opencontainers.image.title=msg-gateway \
      org.opencontainers.image.description="Accepts messages over gRPC, responds OK when every in-sync Kafka replica has them, and serves stored messages"
COPY --from=build /build/target/release/msg-gateway /usr/local/bin/msg-gateway
# A container cannot be reached on loopback. On other addresses the gateway starts only with a certificate (TLS_CERT_FILE,
# TLS_KEY_FILE) or with ALLOW_PLAINTEXT=true, which the operator has to set.
ENV LISTEN=0.0.0.0:50051 ADMIN_LISTEN=0.0.0.0:9464
EXPOSE 50051 9464
# A healthy container is a ready one: the command reads the gateway's /readyz.
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/local/bin/msg-gateway", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/msg-gateway"]

FROM runtime AS msg-transfer
LABEL org.opencontainers.image.title=msg-transfer \
      org.opencontainers.image.description="Stores messages from Kafka in PostgreSQL: each once, in order, none missing"
COPY --from=build /build/target/release/msg-transfer /usr/local/bin/msg-transfer
ENV ADMIN_LISTEN=0.0.0.0:9465
EXPOSE 9465
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/local/bin/msg-transfer", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/msg-transfer"]
