"""The words that the API and the worker share: what a job is, where it stands, and where its files lie."""
