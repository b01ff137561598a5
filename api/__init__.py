"""The front door: the HTTP API, its client and CLI, and `loraq up`, which starts everything on one machine."""
