# Container image: settings from environment variables, state in a volume, no shell, no root.
#
#   docker build -t bearer-proxy .
#   docker run -p 127.0.0.1:8080:8080 -v bearer-proxy-state:/state \
#     -e BEARER_PROXY__UPSTREAM__ENDPOINTS=https://cloud.example.com \
#     -e BEARER_PROXY__TOKEN__CLIENT_ID=my-app \
#     -e BEARER_PROXY__TOKEN__CLIENT_SECRET_FILE=/run/secrets/client_secret \
#     -e BEARER_PROXY__TOKEN__REFRESH_TOKEN_FILE=/run/secrets/refresh_token \
#     -v "$PWD/secrets:/run/secrets:ro" \
#     --stop-timeout 45 --read-only --cap-drop ALL bearer-proxy
#
# scripts/container builds and tests it.

FROM rust:1.95-bookworm AS build
WORKDIR /build

# Dependencies first, so that this layer is rebuilt only when they change. The bench is an empty
# file, because Cargo.toml names it.
COPY Cargo.toml Cargo.lock ./
RUN mkdir benches src && touch benches/hot_path.rs src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --profile dist \
    && rm -r src

COPY src src
# cargo compares modification times: the sources must be newer than the placeholders above.
RUN find src -name '*.rs' -exec touch {} + && cargo build --locked --profile dist

# The final image contains the program, the libraries that it is linked with, public CA
# certificates, the user name, and a directory for state. No shell, no package manager.
RUN mkdir -p /rootfs/usr/local/bin /rootfs/etc/ssl/certs /rootfs/state \
    && cp target/dist/bearer-proxy /rootfs/usr/local/bin/ \
    && ldd target/dist/bearer-proxy | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory=/rootfs \
    && cp --dereference /etc/ssl/certs/ca-certificates.crt /rootfs/etc/ssl/certs/ \
    && echo 'hosts: files dns' > /rootfs/etc/nsswitch.conf \
    && echo 'nonroot:x:65532:65532::/:/sbin/nologin' > /rootfs/etc/passwd \
    && chmod 700 /rootfs/state && chown 65532:65532 /rootfs/state

FROM scratch
COPY --from=build /rootfs /

# A published port reaches the container from outside, so the proxy listens on all addresses.
# Publish it on the host's loopback (-p 127.0.0.1:8080:8080), unless the network restricts the
# clients.
ENV BEARER_PROXY__PROXY__LISTEN=0.0.0.0:8080 \
    BEARER_PROXY__PROXY__ALLOW_UNAUTHENTICATED=true \
    BEARER_PROXY__TOKEN__STATE_FILE=/state/token.json \
    BEARER_PROXY__ADMIN__LISTEN=127.0.0.1:9180 \
    BEARER_PROXY__LOG__FORMAT=json

VOLUME /state
EXPOSE 8080
USER 65532:65532
STOPSIGNAL SIGTERM
# Liveness, not readiness: a restart because the cloud is unavailable could lose a token that is not
# written yet.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/usr/local/bin/bearer-proxy", "status", "--live"]
ENTRYPOINT ["/usr/local/bin/bearer-proxy"]
