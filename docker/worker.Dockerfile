# Worker and trainer. torch comes with CUDA in its wheel, so the base needs none; the driver comes from the machine,
# through the NVIDIA container toolkit. docker build -f docker/worker.Dockerfile -t loraq-worker .

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
    python docker/dependencies.py worker > requirements.txt \
 && python -m pip --python /opt/venv/bin/python install -q -c constraints.txt -r requirements.txt
# loraq itself goes elsewhere first, so that its layer below is a small one.
COPY LICENSE README.md ./
COPY jobs jobs
COPY api api
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=docker/wheels,target=/wheels \
    python -m pip --python /opt/venv/bin/python install -q --no-deps --target /opt/loraq . \
 && rm -r /opt/loraq/api /opt/loraq/bin

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/loraq /opt/loraq
RUN install -d -m 1777 /data
# HOME and USER: a number that nobody named has neither, and torch's compiler asks for both. Its caches need a disk
# that may hold programs, which /tmp as Docker mounts it may not.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/opt/loraq PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 HOME=/tmp USER=loraq MPLCONFIGDIR=/tmp/matplotlib \
    TRITON_CACHE_DIR=/data/triton TORCHINDUCTOR_CACHE_DIR=/data/inductor \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LORAQ_DATA_DIR=/data LORAQ_ALIVE_FILE=/tmp/alive
WORKDIR /data
# Any other number does as well: nothing outside /tmp and /data is written to.
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "jobs.alive", "/tmp/alive"]
CMD ["python", "-m", "worker"]
# A release names them (.github/workflows/release.yml); pyproject.toml is the one place that says the version.
ARG VERSION=unreleased REVISION=unknown
LABEL org.opencontainers.image.title="loraq worker" \
      org.opencontainers.image.description="Takes jobs from loraq's queue and trains SDXL LoRAs on this machine's GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
