"""What the image is built from is locked, with hashes and without an index, at the versions that are tested."""

from __future__ import annotations

import re

from tests.deploy.manifests import DEPLOY

PIN = re.compile(r"^([\w.-]+==[^\s\\]+)", re.M)
LOCKS = ("requirements.image.lock", "requirements.build.lock")


def test_the_image_has_what_is_tested_and_every_file_has_its_hash() -> None:
    tested = set(PIN.findall((DEPLOY.parent / "requirements.lock").read_text()))
    runs = set(PIN.findall((DEPLOY / "requirements.image.lock").read_text()))

    assert runs <= tested and any(pin.startswith("s3fs==") for pin in runs)
    for name in LOCKS:
        text = (DEPLOY / name).read_text()
        assert "://" not in text and "--index" not in text
        pins = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
        assert len(pins) > 5 and all("--hash=sha256:" in pin for pin in pins)


def test_the_image_installs_exactly_the_locks() -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()

    installed = re.findall(r"deploy/(requirements[\w.]*lock)", dockerfile.partition("COPY service")[0])
    assert {*LOCKS, "requirements.lock"} == set(installed)
    assert dockerfile.count("--require-hashes") == 2
