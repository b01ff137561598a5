# Debian's package has the user redis, but not Docker's /data for it.
FROM redis:8
USER root
RUN chown redis /data
