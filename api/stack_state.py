"""What `loraq up` keeps between two starts in one data folder: ports, credentials, and who runs there now."""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from api.auth import TOKEN_PREFIX
from api.servers import free_port, port_is_free, write_private

CLIENT_FILE = "client.json"
"""Where the CLI finds the API of a data folder."""


class FolderInUse(Exception):
    """Another stack runs in this folder."""


class ClientFile(BaseModel):
    """How a client reaches the stack."""

    model_config = ConfigDict(frozen=True)

    url: str
    token: str


class StackState(BaseModel):
    """Ports and credentials of one data folder."""

    model_config = ConfigDict(frozen=True)

    api_port: int = Field(default_factory=free_port)
    redis_port: int = Field(default_factory=free_port)
    s3_port: int = Field(default_factory=free_port)
    redis_password: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    s3_access_key_id: str = Field(default_factory=lambda: f"local-{secrets.token_hex(6)}")
    s3_secret_access_key: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    token: str = Field(default_factory=lambda: TOKEN_PREFIX + secrets.token_urlsafe(32))

    @classmethod
    def load(cls, folder: Path, api_port: int | None = None) -> Self:
        """The state of the last start, or a new one. A port that someone else took since is replaced.

        Args:
            api_port: None for that of the last start, or a free one.
        """
        file = folder / "state.json"
        old = cls.model_validate_json(file.read_bytes()) if file.is_file() else cls()
        ports = {name: port for name, port in old.model_dump().items() if name.endswith("_port")}
        moved = {name: free_port() for name, port in ports.items() if not port_is_free(port)}
        if api_port is not None:
            moved["api_port"] = api_port
        state = old.model_copy(update=moved)
        write_private(file, state.model_dump_json(indent=2))
        return state


class FolderLock:
    """Holds a folder for one process. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            FolderInUse: another process holds it.
        """
        self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 20).decode().strip() or "unknown"
            os.close(self._descriptor)
            raise FolderInUse(
                f"`loraq up` runs in {folder} already, as process {holder}. "
                "Use that one, end it first, or name another folder with --data."
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go of the folder."""
        os.close(self._descriptor)
