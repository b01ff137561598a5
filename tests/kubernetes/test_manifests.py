"""The manifests, as kustomize builds them: valid by the published schemas, and true to what loraq promises."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledJob, TriggerAuthentication
from redis import Redis

from jobs.gpu_class import GpuClass
from jobs.queue import Queues
from jobs.settings import Settings

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
OVERLAYS = ("managed", "self-contained", "two-classes")
KUBERNETES = "1.34"  # a version that is in wide use; the schemas of newer ones only add to it
KEDA = {"ScaledJob": ScaledJob, "TriggerAuthentication": TriggerAuthentication}

Document = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    """What `kubectl apply -k` would send."""
    beside = Path(sys.executable).with_name("kubectl")
    kubectl = str(beside) if beside.is_file() else shutil.which("kubectl")
    assert kubectl, "kubectl comes with loraq[dev]"
    built = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / "overlays" / request.param)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """(name, pod template) of everything that runs."""
    for document in documents:
        spec = document.get("spec", {})
        template = spec.get("template") or spec.get("jobTargetRef", {}).get("template")
        if template:
            yield document["metadata"]["name"], template


def test_kubernetes_own_schemas_hold(documents):
    for document in documents:
        if document["kind"] not in KEDA:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_keda_s_schemas_hold_and_know_every_key(documents):
    ours = [document for document in documents if document["kind"] in KEDA]
    assert {document["kind"] for document in ours} == set(KEDA)
    for document in ours:
        if document["kind"] == "ScaledJob":
            document = copy.deepcopy(document)
            document["spec"]["jobTargetRef"]["template"] = {}  # Kubernetes' own, checked below
        read = KEDA[document["kind"]].model_validate(document)
        # The model drops what it does not know: what comes back must be what went in.
        assert read.model_dump(by_alias=True, exclude_unset=True, mode="json") == document


def test_the_jobs_that_keda_makes_hold_kubernetes_own_schemas(documents):
    for document in of_kind(documents, "ScaledJob"):
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "worker"},
            "spec": document["spec"]["jobTargetRef"],
        }
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_no_pod_has_root_rights_or_a_writable_root(documents):
    for name, template in pods(documents):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name


def test_workers_take_one_job_each_and_are_never_scaled_down(documents):
    scaled = of_kind(documents, "ScaledJob")
    assert scaled
    for document in scaled:
        spec = document["spec"]
        (container,) = spec["jobTargetRef"]["template"]["spec"]["containers"]
        assert container["args"] == ["python", "-m", "worker", "--once"]
        assert spec["rollout"]["strategy"] == "gradual"  # the default ends pods that train
        assert spec["jobTargetRef"]["backoffLimit"] == 0  # loraq's own retries count, not Kubernetes'
    assert not any("worker" in document["metadata"]["name"] for document in of_kind(documents, "Deployment"))


def queue_of(gpu_class: str) -> str:
    """The list in Redis where tickets for a class really lie, as RQ names it; asked of no server."""
    return Queues(Settings().queue, Redis()).of(GpuClass.parse(gpu_class)).key


def classes_of(documents: list[Document]) -> tuple[str, ...]:
    (settings,) = of_kind(documents, "ConfigMap")
    return Settings(gpu_classes=settings["data"]["LORAQ_GPU_CLASSES"]).gpu_classes


def test_each_class_that_can_be_started_has_its_scaled_job_and_no_other_is_waited_for(documents):
    listened = [t["metadata"]["listName"] for d in of_kind(documents, "ScaledJob") for t in d["spec"]["triggers"]]
    assert sorted(listened) == sorted(queue_of(each) for each in classes_of(documents))


def test_a_worker_takes_from_the_queue_that_it_was_started_for_and_has_the_cards_of_its_class(documents):
    for document in of_kind(documents, "ScaledJob"):
        (container,) = document["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
        (own,) = (each["value"] for each in container["env"] if each["name"] == "LORAQ_WORKER_CLASS")
        assert document["spec"]["triggers"][0]["metadata"]["listName"] == queue_of(own)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(GpuClass.parse(own).gpus)


@pytest.mark.parametrize("documents", ["two-classes"], indirect=True)
def test_of_two_classes_each_gets_cards_that_are_its_own_by_loraq_s_measure(documents):
    least_mib = {each: int(GpuClass.parse(each).usable_gib * 1024) for each in classes_of(documents)}
    found = {}
    for document in of_kind(documents, "ScaledJob"):
        pod = document["spec"]["jobTargetRef"]["template"]["spec"]
        own = document["spec"]["triggers"][0]["metadata"]["listName"].rpartition("-")[2]
        rules = find([pod], "matchExpressions")
        found[own] = {rule["operator"]: int(rule["values"][0]) for each in rules for rule in each}
    assert found == {
        "24gb": {"Gt": least_mib["24gb"], "Lt": least_mib["80gb"] + 1},
        "80gb": {"Gt": least_mib["80gb"]},
    }


def test_what_the_docs_say_of_queues_is_so():
    pages = [*(FOLDER.parents[1] / "docs").glob("*.md"), *FOLDER.rglob("*.yaml")]
    named = [(page, *found) for page in pages for found in re.findall(r"(rq:queue:\w+-([\w-]+))", page.read_text())]
    assert len(named) > 3
    for page, name, gpu_class in named:
        assert name == queue_of(gpu_class), page


def test_whatever_a_pod_names_is_there(documents):
    there = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
    for name, template in pods(documents):
        for container in template["spec"]["containers"]:
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in there, name
                else:
                    assert source["secretRef"]["name"] == "loraq-secrets", name  # docs/deployment.md makes it
    keys = {document["metadata"]["name"] for document in of_kind(documents, "TriggerAuthentication")}
    for document in of_kind(documents, "ScaledJob"):
        assert {trigger["authenticationRef"]["name"] for trigger in document["spec"]["triggers"]} <= keys


def test_workers_have_longer_than_their_grace_period(documents):
    (settings,) = of_kind(documents, "ConfigMap")
    grace_s = float(settings["data"]["LORAQ_GRACE_S"])
    for document in of_kind(documents, "ScaledJob"):
        pod = document["spec"]["jobTargetRef"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= grace_s + 10


def test_every_setting_is_one_of_loraq_s(documents):
    known = {f"LORAQ_{name.upper()}" for name in Settings.model_fields}
    (settings,) = of_kind(documents, "ConfigMap")
    secrets = set(secret_names())
    assert set(settings["data"]) <= known
    assert {name for name in secrets if name.startswith("LORAQ_")} <= known
    assert not secrets & set(settings["data"])


def test_every_key_of_a_secret_that_is_named_is_in_the_example(documents):
    named = [each["key"] for each in find(documents, "secretKeyRef")]
    named += [each["key"] for listed in find(documents, "secretTargetRef") for each in listed]
    assert named
    assert set(named) <= set(secret_names())


def test_every_policy_and_service_selects_a_pod(documents):
    labels = [template["metadata"]["labels"] for _, template in pods(documents)]
    selectors = [document["spec"]["selector"] for document in of_kind(documents, "Service")]
    selectors += [p["spec"]["podSelector"].get("matchLabels", {}) for p in of_kind(documents, "NetworkPolicy")]
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector


def test_prometheus_finds_the_port_of_the_metrics_and_is_let_in(documents):
    (settings,) = of_kind(documents, "ConfigMap")
    port = settings["data"]["LORAQ_METRICS_PORT"]
    (policy,) = (each for each in of_kind(documents, "NetworkPolicy") if each["metadata"]["name"] == "metrics")
    assert settings["data"]["LORAQ_METRICS_HOST"] == "0.0.0.0"
    assert [str(rule["port"]) for each in policy["spec"]["ingress"] for rule in each["ports"]] == [port]
    (chosen,) = (each["values"] for each in policy["spec"]["podSelector"]["matchExpressions"])
    shown = {}
    for _, template in pods(documents):
        named = [p for c in template["spec"]["containers"] for p in c.get("ports", []) if p["name"] == "metrics"]
        if named:
            assert template["metadata"]["annotations"]["prometheus.io/port"] == port
            shown[template["metadata"]["labels"]["app.kubernetes.io/name"]] = [str(p["containerPort"]) for p in named]
    assert shown == {name: [port] for name in chosen}


def test_images_are_of_this_version(documents):
    version = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    images = [container["image"] for _, template in pods(documents) for container in template["spec"]["containers"]]
    ours = {image for image in images if "loraq" in image}
    assert {image.rpartition("/")[2] for image in ours} == {f"loraq-api:{version}", f"loraq-worker:{version}"}


def secret_names() -> list[str]:
    lines = (FOLDER / "secrets.env.example").read_text().splitlines()
    return [line.partition("=")[0] for line in lines if line and not line.startswith("#")]


def find(tree: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, however deep."""
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if isinstance(tree, dict) and key in tree:
        yield tree[key]
    for child in children:
        yield from find(child, key)
