from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.decode import InvalidRequest, RequestDecoder
from monitoring.drain import Drainer
from monitoring.erase import Subject, find
from monitoring.privacy import Privacy
from monitoring.store import open_store
from service.configuration import load
from service.handover import Live, LiveVersion, write_live
from service.keys import open_privacy
from service.serving.front import Front
from service.serving.worker import Worker
from service.settings import Settings, SettingsError
from tests.artefacts import example_record, make_artefact, sample_schema
from tests.fronts import beyond, post
from tests.places import files_with

MAIL = "anna@example.org"
PHONE = "+49 170 555"


def settings_at(home: Path, **privacy: list[str]) -> Settings:
    lines = [f"{key} = {json.dumps(names)}" for key, names in privacy.items()]
    (home / "evergreen.toml").write_text("[privacy]\n" + "\n".join(lines) + "\n")
    return load(home / "evergreen.toml", {})


def started(home: Path, settings: Settings) -> Worker:
    make_artefact(home / "model", iterations=2)
    write_live(settings.live_file, Live("evergreen", champion=LiveVersion(1, str(home / "model"))))
    worker = Worker(settings, home / "run", "api-1")
    worker.start()
    return worker


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"


def test_private_columns_are_answered_but_recorded_hashed_or_not_at_all(home: Path) -> None:
    settings = settings_at(home, hash=["email"], drop=["phone"])
    worker = started(home, settings)
    app = Front(beyond, lambda: worker)
    for columns in ({"email": MAIL, "phone": PHONE}, {"email": MAIL}, {"email": None, "phone": 7}, {}):
        answer = post(app, "/predict", {"records": [example_record(**columns)]})
        assert answer.status_code == 200, answer.text
    bad = post(app, "/predict", {"records": [example_record(email=[MAIL])]})
    assert bad.status_code == 400 and "records[0].email: expected text" in bad.json()["error"]
    assert post(app, "/predict", {"records": [example_record(mail=MAIL)]}).status_code == 400
    worker.close()

    engine = open_store(f"sqlite:///{home}/evergreen.db")
    with Drainer(settings.spool_dir, engine) as drainer:
        assert drainer.drain(0.0).predictions == 4
    with engine.connect() as connection:
        records = [json.loads(text) for (text,) in connection.exec_driver_sql("select features from predictions")]
    privacy = open_privacy(settings)
    assert privacy is not None
    hidden = privacy.hidden(MAIL)
    assert hidden is not None and hidden.startswith("h:") and len(hidden) == 18
    assert [record.get("email") for record in records] == [hidden, hidden, None, None]
    assert not any("phone" in record for record in records)
    assert {key: value for key, value in records[0].items() if key != "email"} == example_record()
    assert len(find(engine, Subject(feature="email", value=hidden), 1e12).ids) == 2
    assert files_with(home / "var", MAIL, PHONE) == []
    assert stat.S_IMODE((home / "var" / "privacy.key").stat().st_mode) == 0o600
    engine.dispose()


def test_a_version_that_was_trained_on_a_private_column_is_not_served(home: Path) -> None:
    feature = next(iter(example_record()))
    worker = started(home, settings_at(home, drop=[feature]))

    assert worker.model.current is None
    assert f"was trained on {feature}, which [privacy] hashes or drops" in str(worker.why_not_ready)
    worker.close()


def test_a_hash_needs_the_key_and_knows_a_number_from_its_text() -> None:
    ours, theirs = Privacy(["a"], [], b"ours"), Privacy(["a"], [], b"theirs")

    assert ours.hidden("41") == ours.hidden(41) == ours.hidden(41.0) != theirs.hidden("41")
    assert ours.hidden(None) is None


def test_what_is_not_private_is_recorded_to_the_letter() -> None:
    body = b'{"records":[{"x":1.10,"a":"b"},{"x":123456789012345678901234567890}],"ids":["1","2"]}'

    redacted = Privacy([], ["a"], b"").redact(body)

    assert redacted == b'{"records":[{"x":1.10},{"x":123456789012345678901234567890}],"ids":["1","2"]}'


def test_without_private_columns_nothing_is_done_and_no_key_is_made(home: Path) -> None:
    settings = settings_at(home)

    assert open_privacy(settings) is None
    assert not (home / "var").exists()


def test_a_column_is_hashed_or_dropped_but_not_both(home: Path) -> None:
    with pytest.raises(SettingsError, match="email is named twice"):
        settings_at(home, hash=["email"], drop=["email"])


def test_only_the_named_columns_are_let_in() -> None:
    schema, _, _ = sample_schema()
    decoder = RequestDecoder(schema, 2, ("email",))
    record = example_record(email=MAIL)

    assert decoder.decode(json.dumps({"records": [record]}).encode()).frame().columns.tolist() == list(schema.names)
    with pytest.raises(InvalidRequest, match="unknown feature"):
        decoder.decode(json.dumps({"records": [{**record, "mail": MAIL}]}).encode())
