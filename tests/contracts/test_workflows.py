"""The workflows of GitHub Actions, as far as they can be checked without GitHub."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture
def release() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]


def test_they_hold_github_s_schema():
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [str(checker), "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]

    checked = subprocess.run(command, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


def test_every_script_that_they_run_is_there():
    scripts = [
        line.split("run:")[1].strip()
        for f in WORKFLOWS
        for line in f.read_text().splitlines()
        if "run: scripts/" in line
    ]

    assert "scripts/test" in scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_the_release_builds_the_dockerfiles_that_are_there(release):
    images = release["images"]

    assert {f"{part}.Dockerfile" for part in images["strategy"]["matrix"]["part"]} == {
        file.name for file in (ROOT / "docker").glob("*.Dockerfile")
    }
    (build,) = (step for step in images["steps"] if step.get("id") == "build")
    assert (build["with"]["sbom"], build["with"]["provenance"]) == (True, "mode=max")


def test_nothing_is_pushed_but_for_a_tag_and_nothing_before_the_tests_passed(release):
    by_name = {step["uses"].split("@")[0]: step for step in release["images"]["steps"] if "uses" in step}
    tagged = "github.ref_type == 'tag'"

    assert by_name["docker/build-push-action"]["with"]["push"] == f"${{{{ {tagged} }}}}"
    assert by_name["docker/login-action"]["if"] == by_name["actions/attest-build-provenance"]["if"] == tagged
    assert set(release["images"]["needs"]) == {"test", "version"}
    assert release["test"]["uses"] == "./.github/workflows/ci.yml"


def test_images_are_told_the_version_by_the_arguments_that_they_take(release):
    (build,) = (step for step in release["images"]["steps"] if step.get("id") == "build")
    given = {line.split("=")[0] for line in build["with"]["build-args"].splitlines()}
    for file in (ROOT / "docker").glob("*.Dockerfile"):
        taken = dict(re.findall(r"(VERSION|REVISION)=(\w+)", file.read_text()))
        assert given == taken.keys(), file.name
        assert VERSION not in file.read_text(), f"{file.name} repeats the version that pyproject.toml says"


@pytest.mark.parametrize(
    ("ref_type", "ref_name", "changelog", "complaint"),
    [
        ("tag", f"v{VERSION}", f"# Changelog\n\n## {VERSION}\n", None),
        ("branch", "main", "# Changelog\n\n## Unreleased\n", None),
        ("tag", "v9.9.9", f"# Changelog\n\n## {VERSION}\n", f"v9.9.9, but pyproject.toml says {VERSION}"),
        ("tag", f"v{VERSION}", "# Changelog\n\n## Unreleased\n", f"no section '## {VERSION}'"),
    ],
)
def test_a_tag_that_is_not_the_version_releases_nothing(release, tmp_path, ref_type, ref_name, changelog, complaint):
    (step,) = (step for step in release["version"]["steps"] if step.get("id") == "read")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    output = tmp_path / "output"
    env = {"REF_TYPE": ref_type, "REF_NAME": ref_name, "GITHUB_OUTPUT": str(output), "PATH": _path()}

    ran = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=env, capture_output=True, text=True
    )

    if complaint is None:
        assert (ran.returncode, output.read_text()) == (0, f"version={VERSION}\n")
    else:
        assert ran.returncode == 1
        assert complaint in ran.stderr
        assert not output.exists()


def _path() -> str:
    """Where python3 is this Python, which has tomllib, as the one of GitHub's runners has."""
    return f"{Path(sys.executable).parent}:/usr/bin:/bin"
