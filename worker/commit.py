"""The one step that makes an output: everything in the bucket and read back, then the record names its manifest."""

import hashlib
import shutil
from pathlib import Path

from jobs.errors import StorageUnavailable
from jobs.manifest import MANIFEST_NAME, ManifestFile, manifest_of, own_manifest
from jobs.record import JobRecord
from jobs.spec_text import write_spec
from jobs.storage import Storage
from jobs.uri import S3Uri
from worker.lease import Lease


def commit(
    record: JobRecord,
    output: Path,
    output_uri: S3Uri,
    lease: Lease,
    storage: Storage,
    samples: tuple[ManifestFile, ...],
) -> None:
    """Upload everything into the attempt's own folder, its manifest last, and let the record name that: the commit."""
    shutil.rmtree(output / "checkpoints", ignore_errors=True)  # of use only to an attempt that goes on
    (output / "spec.yaml").write_text(write_spec(record.spec), encoding="utf-8")
    manifest = manifest_of(output, record.id, lease.attempt, samples)
    there = {file.stored_as for file in samples}
    own = [file for file in manifest.files if file.stored_as not in there]
    storage.upload_all(((output / file.path, output_uri / file.stored_as) for file in own), lease.check)
    raw = manifest.model_dump_json(indent=2).encode()
    storage.write(output_uri / own_manifest(lease.attempt), raw)
    written = {file.stored_as: file.sha256 for file in manifest.files}
    written[own_manifest(lease.attempt)] = hashlib.sha256(raw).hexdigest()
    there_now = storage.sha256_all((output_uri / name for name in written), lease.check)
    for name, sha256 in written.items():
        if there_now[output_uri / name] != sha256:
            raise StorageUnavailable(f"{output_uri}{name} reads back as other bytes than were written.")
    lease.commit(written[own_manifest(lease.attempt)])
    storage.write(output_uri / MANIFEST_NAME, raw)  # for whoever looks into the bucket; jobs/mirror.py makes sure of it
