"""All of docker-compose.yml in a project of its own, with ports and secrets of its own, as a person would drive it."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from api.cli_init import SECRETS, filled
from api.client import Loraq
from api.servers import free_port

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker/compose.cpu.yml", "tests/e2e/compose.e2e.yml")
VERSION = f"e2e-{secrets.token_hex(4)}"
"""The images' tag: of this run alone, for another on this engine would put its own under the same name."""


class DockerStack:
    """A compose project.

    Args:
        folder: where its .env goes, and what jobs leave.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: tuple[str, ...] = FILES  # below the repository; more may be added
        self.name = f"loraq-e2e-{secrets.token_hex(4)}"
        self.secrets = {name: make() for name, make in SECRETS.items()}
        api, store = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.url = f"http://{api}"
        others = {
            "LORAQ_API_BIND": api,
            "LORAQ_S3_BIND": store,
            "LORAQ_S3_PUBLIC_ENDPOINT_URL": f"http://{store}",
            "LORAQ_VERSION": VERSION,
            "LORAQ_HERE": str(folder),
            "LORAQ_UID": str(os.getuid()),
            "LORAQ_GID": str(os.getgid()),
            "LORAQ_HEARTBEAT_S": "1",
            "LORAQ_LEASE_S": "8",
            "LORAQ_REAP_EVERY_S": "1",
            "LORAQ_RETRY_WAIT_S": "1",
        }
        written = self.secrets | {"LORAQ_BASE_MODELS": "", "LORAQ_API_URL": self.url}
        text = filled((ROOT / ".env.example").read_text(), written)
        text = re.sub(rf"^({'|'.join(others)})=.*\n", "", text, flags=re.MULTILINE)
        lines = "".join(f"{name}={value}\n" for name, value in others.items())
        (folder / ".env").write_text(text + lines)
        names = re.compile(r"LORAQ_|COMPOSE_|DOCKER_BUILDKIT")
        self._env = {name: value for name, value in os.environ.items() if not names.match(name)}

    def compose(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run `docker compose`, and give what it says on standard output."""
        return self._run(self._compose(*arguments), stdin)

    def try_compose(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run `docker compose`, which may fail."""
        return subprocess.run(self._compose(*arguments), env=self._env, capture_output=True, cwd=ROOT)

    def _compose(self, *arguments: str) -> list[str]:
        files = [f"-f{ROOT / file}" for file in self.files]
        command = ["docker", "compose", "--project-directory", str(ROOT), "--env-file", str(self.folder / ".env")]
        return [*command, "-p", self.name, *files, *arguments]

    def docker(self, *arguments: str) -> str:
        """Run `docker`."""
        return self._run(["docker", *arguments], None)

    def loraq(self, *arguments: str) -> str:
        """Run the command line from outside, as its users do."""
        connection = {"LORAQ_API_URL": self.url, "LORAQ_API_TOKEN": self.secrets["LORAQ_API_TOKEN"]}
        command = [sys.executable, "-m", "api.cli", *arguments]
        return self._run(command, None, connection | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"})

    def client(self) -> Loraq:
        """The API from Python."""
        return Loraq(self.url, self.secrets["LORAQ_API_TOKEN"])

    def submitted(self, spec: Path, photos: Path) -> str:
        """Submit with the command line; the job's id."""
        return json.loads(self.loraq("submit", str(spec), "--dataset", str(photos), "--json"))["id"]

    def containers(self, service: str = "") -> list[str]:
        """Ids of those that run."""
        return self.compose("ps", "-q", *filter(None, [service])).split()

    def logs(self, service: str) -> list[str]:
        """Every line that a service's containers have logged."""
        lines: list[str] = []
        for each in self.containers(service):
            said = subprocess.run(["docker", "logs", each], env=self._env, capture_output=True, check=True, text=True)
            lines += [*said.stdout.splitlines(), *said.stderr.splitlines()]
        return lines

    def inspect(self, *ids: str) -> list[dict[str, Any]]:
        """What Docker knows of containers or images."""
        return json.loads(self.docker("inspect", *ids))

    def remove(self) -> None:
        """Take down all of it, and the names of its images; their layers stay as build cache."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")
        names = self.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference=*:{VERSION}")
        self.docker("rmi", *names.split())

    def from_inside(self, url: str) -> str:
        """What a container of the network `inside` gets from an address."""
        program = (
            "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=10).read().decode())"
        )
        return self.compose("exec", "-T", "api", "python", "-c", program, url)

    def until_step(self, job: str, step: int) -> None:
        """Wait until the newest attempt at a job has trained `step` steps."""
        with self.client() as loraq:
            for event in loraq.events(job, follow=True):
                if event.kind == "step" and int(str(event.data["step"])) >= step:
                    return
        raise AssertionError(f"{job} ended before step {step}")

    def until_ended(self, job: str, timeout_s: float = 240.0) -> Any:
        """The job, once it has ended."""
        deadline = time.monotonic() + timeout_s
        with self.client() as loraq:
            while not (found := loraq.get(job)).status.final:
                assert time.monotonic() < deadline, found
                time.sleep(0.5)
        return found

    def found_in_layers(self, image: str, values: Iterable[str]) -> list[str]:
        """Which of `values` stand in the bytes of an image: its configuration and every file of every layer."""
        wanted = [value.encode() for value in values]
        found, tail = set[bytes](), b""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE, env=self._env) as saved:
            assert saved.stdout is not None
            while chunk := saved.stdout.read(4 << 20):
                found |= {value for value in wanted if value in tail + chunk}
                tail = chunk[-256:]
        assert saved.returncode == 0, image
        return sorted(value.decode() for value in found)

    def _run(self, command: list[str], stdin: bytes | None, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(command, input=stdin, env=self._env | (env or {}), capture_output=True, cwd=ROOT)
        if done.returncode:
            said = done.stderr.decode(errors="replace")[-4000:]
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
        return done.stdout.decode()
