# Debian's Prometheus in the place of the official image, with the folder for data that that one has.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus \
 && install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["prometheus"]
