"""The compose files are whole, and Compose itself finds nothing wrong with them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.cli_init import SECRETS, filled
from jobs.settings import Settings

ROOT = Path(__file__).parents[2]
OVERRIDES = ["cpu", "s3", "share", "worker"]

# Where a container's own files lie is its image's business, and the rest is set for one service.
NOT_SHARED = {"LORAQ_DATA_DIR", "LORAQ_ALIVE_FILE", "LORAQ_DEVICE", "LORAQ_GPUS", "LORAQ_WORKER_CLASS"}
NOT_SHARED |= {"LORAQ_NODES", "LORAQ_RENDEZVOUS"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    # BaseLoader keeps values as they are written, merge keys included.
    read = yaml.load((ROOT / "docker-compose.yml").read_text(), Loader=yaml.BaseLoader)
    read["services"] = {name: service.get("<<", {}) | service for name, service in read["services"].items()}
    return read


def test_every_setting_reaches_the_containers(compose: dict[str, Any]) -> None:
    names = {f"LORAQ_{name.upper()}" for name in Settings.model_fields}

    assert set(compose["x-settings"]) == names - NOT_SHARED


def test_env_example_names_every_variable_that_the_compose_files_read() -> None:
    files = [ROOT / "docker-compose.yml", *(ROOT / "docker").glob("compose.*.yml")]
    text = "".join(file.read_text() for file in files)
    read = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^\s+(LORAQ_\w+):$", text, re.MULTILINE))
    example = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^(?:# )?(\w+)=", example, re.MULTILINE))

    assert read - named == set()
    assert named - read == set()


def test_every_container_has_few_rights_and_limits(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] == "true", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name
        if name != "loraq":
            assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}, name


def config(folder: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("Docker Compose is not installed here.")
    files = [ROOT / "docker-compose.yml", *(ROOT / f"docker/compose.{name}.yml" for name in overrides)]
    command = ["docker", "compose", "--project-directory", str(folder), *(f"-f{file}" for file in files), "config"]
    command += ["--format", "json"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LORAQ_", "COMPOSE_"))}
    return subprocess.run(command, env=clean | env, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a .env as `loraq init` writes it."""
    values = {name: make() for name, make in SECRETS.items()}
    (tmp_path / ".env").write_text(filled((ROOT / ".env.example").read_text(), values))
    return tmp_path


@pytest.mark.parametrize("overrides", [[], *([name] for name in OVERRIDES)], ids=["none", *OVERRIDES])
def test_compose_config_is_clean(folder: Path, overrides: list[str]) -> None:
    others = {
        "LORAQ_REDIS_BIND": "10.0.0.1:6379",
        "LORAQ_REDIS_URL": "redis://:x@10.0.0.1:6379/0",
        "LORAQ_S3_ENDPOINT_URL": "http://10.0.0.1:8333",
    }
    answer = config(folder, *overrides, **others)

    assert (answer.returncode, answer.stderr) == (0, "")
    worker = json.loads(answer.stdout)["services"]["worker"]
    reserved = worker["deploy"]["resources"].get("reservations", {}).get("devices", [])
    assert [device["driver"] for device in reserved] == ([] if overrides == ["cpu"] else ["nvidia"])


@pytest.mark.parametrize(
    ("overrides", "profile", "open_to_users"),
    [
        ([], "", {"api": "8000", "store": "8333"}),
        (["cpu"], "", {"api": "8000", "store": "8333"}),
        ([], "monitoring", {"api": "8000", "store": "8333", "grafana": "3000"}),
    ],
    ids=["gpu", "cpu", "monitoring"],
)
def test_on_loopback_users_reach_what_is_for_them_and_nothing_else(
    folder: Path, overrides: list[str], profile: str, open_to_users: dict[str, str]
) -> None:
    answer = config(folder, *overrides, COMPOSE_PROFILES=profile)
    assert (answer.returncode, answer.stderr) == (0, "")
    services = json.loads(answer.stdout)["services"]
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}

    assert {name: port["published"] for name, ports in published.items() for port in ports} == open_to_users
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}
    assert not any(each.get("privileged") or each.get("network_mode") for each in services.values())


def test_the_command_line_alone_has_the_network_of_its_machine(folder: Path) -> None:
    services = json.loads(config(folder, COMPOSE_PROFILES="*").stdout)["services"]

    assert {name for name, each in services.items() if each.get("network_mode") == "host"} == {"loraq"}
    assert "ports" not in services["loraq"]


def test_every_service_that_goes_on_has_a_health_check(folder: Path) -> None:
    services = json.loads(config(folder, COMPOSE_PROFILES="*").stdout)["services"]
    images = {"loraq-api": "api.Dockerfile", "loraq-worker": "worker.Dockerfile"}
    for name, each in services.items():
        own = each.get("healthcheck", {})
        if own.get("disable"):
            assert name in ("setup", "loraq")  # they end
            continue
        dockerfile = images.get(each["image"].split(":")[0])
        assert own.get("test") or (dockerfile and "HEALTHCHECK" in (ROOT / "docker" / dockerfile).read_text()), name


def test_images_of_others_are_pinned(folder: Path) -> None:
    services = json.loads(config(folder, COMPOSE_PROFILES="*").stdout)["services"]
    others = {each["image"] for each in services.values() if not each["image"].startswith("loraq-")}

    assert len(others) == 4
    assert all(re.search(r":v?\d", image) for image in others), others


def test_no_secret_is_an_argument(folder: Path) -> None:
    text = (folder / ".env").read_text()
    values = [re.search(rf"^{name}=(.+)$", text, re.MULTILINE)[1] for name in SECRETS]  # type: ignore[index]
    services = json.loads(config(folder, COMPOSE_PROFILES="*").stdout)["services"]
    for name, each in services.items():
        told = json.dumps([each.get(key) for key in ("command", "entrypoint", "healthcheck", "labels", "build")])
        assert [value for value in values if value in told] == [], name
    assert values[0] in json.dumps(services)  # the search would find it


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_without_a_secret_compose_says_what_to_do(folder: Path, name: str) -> None:
    text = (folder / ".env").read_text()
    (folder / ".env").write_text(re.sub(rf"^{name}=.*$", f"{name}=", text, flags=re.MULTILINE))
    answer = config(folder)

    assert answer.returncode != 0
    assert name in answer.stderr
    assert "scripts/init" in answer.stderr


def test_a_worker_has_longer_to_stop_than_it_needs(compose: dict[str, Any]) -> None:
    period = compose["services"]["worker"]["stop_grace_period"]
    default_s = float(re.fullmatch(r"\$\{LORAQ_STOP_GRACE_PERIOD:-(\d+)s\}", period)[1])  # type: ignore[index]

    assert default_s >= Settings.model_fields["grace_s"].default + 15
