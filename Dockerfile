# syntax-free on purpose: builds with the classic builder and with BuildKit, with or without a registry in reach.
# BASE_IMAGE: any Debian-based image with Python 3.11+, pip and venv.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY raft raft
COPY wal wal
COPY kvserver kvserver
RUN python3 -m venv /opt/kvserver \
 && /opt/kvserver/bin/python -m pip install --no-cache-dir --disable-pip-version-check . \
 && /opt/kvserver/bin/python -m compileall -q /opt/kvserver/lib

FROM ${BASE_IMAGE}
RUN groupadd --system --gid 10001 kvserver \
 && useradd --system --uid 10001 --gid kvserver --home-dir /var/lib/kvserver --shell /usr/sbin/nologin kvserver \
 && install -d -m 0700 -o kvserver -g kvserver /var/lib/kvserver
COPY --from=build /opt/kvserver /opt/kvserver
ENV PATH=/opt/kvserver/bin:$PATH PYTHONUNBUFFERED=1
USER kvserver
WORKDIR /var/lib/kvserver
VOLUME /var/lib/kvserver
EXPOSE 2379 2380
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=6 CMD ["kvctl", "--endpoints=127.0.0.1:2379", "endpoint", "health"]
ENTRYPOINT ["kvserver"]
CMD ["--data-dir=/var/lib/kvserver/data", "--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://127.0.0.1:2379"]
