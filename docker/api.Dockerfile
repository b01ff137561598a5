# API, reaper and command line. No torch, no pip, no package manager: small, and little to break into.
# docker build -f docker/api.Dockerfile -t loraq-api .

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Set to 1 where nothing may be fetched: everything comes from docker/wheels then.
ARG PIP_NO_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_FIND_LINKS=/wheels
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
# The dependencies: a layer of their own, which a change of loraq's code leaves as it is.
COPY pyproject.toml constraints.txt ./
COPY docker/dependencies.py docker/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=docker/wheels,target=/wheels \
    python docker/dependencies.py api > requirements.txt \
 && python -m pip --python /opt/venv/bin/python install -q -c constraints.txt -r requirements.txt
COPY LICENSE README.md ./
COPY jobs jobs
COPY api api
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=docker/wheels,target=/wheels \
    python -m pip --python /opt/venv/bin/python install -q --no-deps . \
 && rm -r /opt/venv/lib/python3*/site-packages/worker

FROM ${BASE} AS slim
COPY --from=build /opt/venv /opt/venv
# What only installs or is only read by people. dpkg's list of packages stays, for whoever scans the image.
RUN rm -rf /var/lib/apt/lists /var/cache/* /var/log/* /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale \
      /usr/share/python-wheels /usr/lib/python3/dist-packages /usr/local/lib/python3*/site-packages \
      /usr/lib/python3*/ensurepip /usr/local/lib/python3*/ensurepip /usr/bin/pip* /usr/local/bin/pip* /etc/pip.conf \
 && install -d -m 1777 /data

# Copied into an empty image, so that what was deleted is gone from the size, too.
FROM scratch
COPY --from=slim / /
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
# Any other number does as well: nothing outside /tmp and /data is written to.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-I", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "api", "--host", "0.0.0.0"]
# A release names them (.github/workflows/release.yml); pyproject.toml is the one place that says the version.
ARG VERSION=unreleased REVISION=unknown
LABEL org.opencontainers.image.title="loraq API" \
      org.opencontainers.image.description="The HTTP API, the reaper and the command line of loraq" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
