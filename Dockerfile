# syntax=docker/dockerfile:1
# The two services, one target each:
#   docker build --target msg-gateway -t msg-gateway .
#   docker build --target msg-transfer -t msg-transfer .

# The Rust of rust-toolchain.toml. That file itself stays out of the build: it asks for rustfmt and clippy as well.
FROM rust:1.95-slim-bookworm AS build
# librdkafka is built from its sources by make, and its configure script asks for a C++ compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
# zlib is linked in, as the final image has none; symbols are of use only where the binaries are built.
ENV LIBZ_SYS_STATIC=1 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols
WORKDIR /build

# The dependencies, built beside empty packages: a layer that is reused until a manifest or Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
COPY msg-gateway/Cargo.toml msg-gateway/
COPY msg-transfer/Cargo.toml msg-transfer/
COPY msg-transfer/machine/Cargo.toml msg-transfer/machine/
COPY msg-transfer/simulator/Cargo.toml msg-transfer/simulator/
COPY msg-dev/Cargo.toml msg-dev/
COPY tests/Cargo.toml tests/
RUN printf '//! Empty.\nfn main() {}\n' >build.rs \
    && for package in . msg-gateway msg-transfer msg-transfer/machine msg-transfer/simulator msg-dev tests; do \
           mkdir -p "$package/src" && echo '//! Empty.' >"$package/src/lib.rs" && cp build.rs "$package/src/main.rs" || exit 1; \
       done \
    && rm src/main.rs \
    && cargo build --release --locked -p msg-gateway -p msg-transfer

# The sources. cargo goes by times, and a copied file may be older than its empty placeholder: so all are made new.
COPY build.rs ./
COPY proto proto
COPY src src
COPY msg-gateway msg-gateway
COPY msg-transfer msg-transfer
RUN find build.rs proto src msg-gateway msg-transfer -exec touch {} + \
    && cargo build --release --locked -p msg-gateway -p msg-transfer

# libc, libgcc and certificates; no shell, no package manager, nobody but user 65532.
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
      org.opencontainers.image.description="Takes messages in over gRPC and answers once Kafka has them for good; gives stored ones out"
COPY --from=build /build/target/release/msg-gateway /usr/local/bin/msg-gateway
# Loopback is of no use in a container. Beyond it the gateway starts only with ALLOW_PLAINTEXT=true, which stays the deployer's word.
ENV LISTEN=0.0.0.0:50051 ADMIN_LISTEN=0.0.0.0:9464
EXPOSE 50051 9464
# Healthy is ready: the gateway's own answer on /readyz.
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/local/bin/msg-gateway", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/msg-gateway"]

FROM runtime AS msg-transfer
LABEL org.opencontainers.image.title=msg-transfer \
      org.opencontainers.image.description="Takes messages from Kafka into PostgreSQL: each once, in order, none missing"
COPY --from=build /build/target/release/msg-transfer /usr/local/bin/msg-transfer
ENV ADMIN_LISTEN=0.0.0.0:9465
EXPOSE 9465
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/local/bin/msg-transfer", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/msg-transfer"]
